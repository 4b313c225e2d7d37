"""Which names a server that only this machine can reach goes by."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ErrorInfo
from app.http.error_handlers import error_response
from app.settings import is_loopback

FORBIDDEN_HOST = ErrorInfo(
    code="forbidden_host",
    message="This server is for its own machine: ask for it as 127.0.0.1 or localhost, or set "
    "api_keys.",
)


class HostCheck:
    """Refuses requests for any other name, on a server without keys.

    A page can have its own name resolved to this machine (DNS rebinding), and then counts as of
    one origin with us. Its requests still carry that name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_ours(Headers(scope=scope).get("host")):
            await self._app(scope, receive, send)
        else:
            await error_response(FORBIDDEN_HOST)(scope, receive, send)


def _is_ours(host: str | None) -> bool:
    """Whether a `Host` header names this machine; browsers always send one (RFC 9112 §3.2)."""
    if host is None:
        return True
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
