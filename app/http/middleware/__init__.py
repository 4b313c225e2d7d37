"""The middleware stack. A request passes it from top to bottom, a response from bottom to top:

1. `SecurityHeaders` adds headers to every response.
2. `HostCheck` refuses other host names (DNS rebinding); only on a loopback address without keys.
3. `CORSMiddleware` answers preflight requests; only with `allowed_origins`.
4. `OriginCheck` refuses requests from pages of other origins.
5. `ErrorBoundary` answers unexpected exceptions with 500.
6. `BodyLimit` refuses bodies that are too large.
7. `RequestScope` provides an exit stack that is closed after the response.

All of it is pure ASGI, so nothing buffers a stream or hides a disconnect from the route. WebSockets
pass through, except for the host check.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app.http.middleware.body_limit import BodyLimit
from app.http.middleware.error_boundary import ErrorBoundary
from app.http.middleware.host_check import HostCheck
from app.http.middleware.origin_check import OriginCheck
from app.http.middleware.request_scope import RequestScope
from app.http.middleware.security_headers import SecurityHeaders
from app.settings import Settings, is_loopback


def add_middleware(app: FastAPI, settings: Settings) -> None:
    """Add the stack to the application: the middleware that is added last is the outermost."""
    app.add_middleware(RequestScope)
    app.add_middleware(BodyLimit, max_bytes=settings.max_message_bytes)
    app.add_middleware(ErrorBoundary)
    app.add_middleware(OriginCheck, allowed=settings.allowed_origins)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's SDK sends many of its own
            expose_headers=["retry-after"],
        )
    if is_loopback(settings.host) and not settings.api_keys:
        app.add_middleware(HostCheck)
    app.add_middleware(SecurityHeaders)
