"""The last stop of an exception that nobody expected."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.error_handlers import INTERNAL_ERROR, error_response

logger = logging.getLogger(__name__)


class ErrorBoundary:
    """Logs what nobody expected and answers 500 with a safe text.

    Starlette's own stands outside all other middleware, so its answers lack our headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_watched(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        except Exception:
            if has_started:
                raise  # the server cuts the connection, which is all that can still be said
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await error_response(INTERNAL_ERROR)(scope, receive, send)
