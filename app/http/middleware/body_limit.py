"""Limits the size of a request's body."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ErrorInfo, RequestRefused
from app.http.error_handlers import error_response


class BodyLimit:
    """Refuses a body that is too large, before it is in memory.

    A body with a `Content-Length` is refused unread. A chunked body is refused at the chunk that
    exceeds the limit: reading it raises `RequestRefused` in the route.

    Args:
        app: the next application.
        max_bytes: maximum size of a body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._too_big = ErrorInfo(
            code="message_too_big", message=f"The body must not exceed {max_bytes} bytes."
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the body's bytes while it is received."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _content_length(scope) > self._max_bytes:
            # Close the connection, so that the rest of the body need not be sent.
            refuse = error_response(self._too_big, headers={"connection": "close"})
            await refuse(scope, receive, send)
            return

        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                if num_bytes > self._max_bytes:
                    raise RequestRefused(self._too_big)
            return message

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and num_bytes > self._max_bytes:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive_limited, send_closing)


def _content_length(scope: Scope) -> int:
    """Return the `Content-Length`; 0 if it is missing or malformed."""
    value = Headers(scope=scope).get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else 0
