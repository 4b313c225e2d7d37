"""Answers unexpected exceptions."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.error_handlers import INTERNAL_ERROR, error_response

logger = logging.getLogger(__name__)


class ErrorBoundary:
    """Logs an unexpected exception and answers 500 with a safe text.

    Starlette's own handler is outside all other middleware, so its responses lack their headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request; re-raise if the response has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            if has_started:
                raise  # uvicorn closes the connection, the only way left to report an error
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await error_response(INTERNAL_ERROR)(scope, receive, send)
