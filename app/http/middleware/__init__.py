"""What every request passes on its way to a route and back.

Only the host check looks at WebSockets. Pure ASGI: nothing buffers a stream or hides a disconnect
from the route.
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
    """Wrap the application, from the inside out."""
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
