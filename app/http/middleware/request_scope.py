"""Resources of a REST request that are released after its response."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.types import ASGIApp, Receive, Scope, Send


class RequestScope:
    """Sets `request.state.exit_stack`, which is closed when the response has been sent.

    A FastAPI dependency cannot do this for `JSONRoute`, which checks the caller before FastAPI
    resolves dependencies.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request with an exit stack of its own."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as exit_stack:
            scope.setdefault("state", {})["exit_stack"] = exit_stack
            await self._app(scope, receive, send)
