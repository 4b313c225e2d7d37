"""Protects a local server without API keys from DNS rebinding."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ErrorInfo
from app.http.error_handlers import error_response
from app.settings import is_loopback

FORBIDDEN_HOST = ErrorInfo(
    code="forbidden_host",
    message="This server accepts local host names only: use 127.0.0.1 or localhost, or set "
    "api_keys.",
)


class HostCheck:
    """Refuses requests whose `Host` is not a name of this machine.

    A page can make its own name resolve to 127.0.0.1 (DNS rebinding); the browser then treats the
    page and this server as one origin. Its requests still carry that name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the `Host` header, of WebSocket handshakes too."""
        if scope["type"] == "lifespan" or _is_local(Headers(scope=scope).get("host")):
            await self._app(scope, receive, send)
        else:
            await error_response(FORBIDDEN_HOST)(scope, receive, send)


def _is_local(host: str | None) -> bool:
    """Return whether a `Host` header names this machine; a client without one is no browser."""
    if host is None:
        return True
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
