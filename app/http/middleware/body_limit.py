"""How much a request may bring."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ErrorInfo, RequestRefused
from app.http.error_handlers import error_response


class BodyLimit:
    """Refuses a body that is too big as soon as that shows, before it is in memory.

    A body that announces its size is refused unread; one that comes in chunks, at the chunk that is
    too much: whoever reads it then gets `RequestRefused`.

    Args:
        max_bytes: of one body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._too_big = ErrorInfo(
            code="message_too_big", message=f"The body is bigger than {max_bytes} bytes."
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _content_length(scope) > self._max_bytes:
            # Closing saves both sides the rest of the body.
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
    """Return the announced size; 0 where there is none, or none that makes sense."""
    value = Headers(scope=scope).get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else 0
