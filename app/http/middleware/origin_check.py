"""Protects against cross-site requests."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth import FORBIDDEN_ORIGIN, is_origin_allowed
from app.http.error_handlers import error_response

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class OriginCheck:
    """Refuses requests from pages of other origins, unless the method is safe.

    CORS alone is not enough: it hides the response from the page, but the browser still sends a
    simple POST without a preflight request.

    Args:
        app: the next application.
        allowed: other origins whose pages may call; `*` is any.
    """

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the `Origin` header."""
        app = self._app if self._may_pass(scope) else error_response(FORBIDDEN_ORIGIN)
        await app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] in _SAFE_METHODS:
            return True
        headers = Headers(scope=scope)
        return is_origin_allowed(
            headers.get("origin"), host=headers.get("host"), allowed=self._allowed
        )
