"""FastAPI dependencies of the routes: the services, built in `create_app`, and the caller."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.requests import HTTPConnection
from fastapi.security import HTTPBearer

from app.auth import Authenticator, bearer_key
from app.errors import ErrorInfo, RequestRefused
from app.http.request_limiter import RequestLimiter
from app.json.large_json import LargeMessages
from app.responses.service import ResponseService
from app.settings import Settings
from app.websocket.connections import ConnectionRegistry
from streaming import AsyncEngine

UNAUTHORIZED = ErrorInfo(
    code="unauthorized", message="A valid API key is required: Authorization: Bearer KEY."
)
_RETRY_AFTER_S = 1.0
"""Sent to a caller with too many open requests; how long these will take is not known."""


@dataclass(frozen=True, slots=True)
class Services:
    """The objects that routes share.

    Attributes:
        started_at: monotonic seconds.
        created_at: the same moment, in Unix seconds.
        large: parses JSON off the event loop where it is too large for it.
    """

    settings: Settings
    engine: AsyncEngine
    authenticator: Authenticator
    connections: ConnectionRegistry
    request_limiter: RequestLimiter
    responses: ResponseService
    started_at: float
    created_at: float = field(default_factory=time.time)
    large: LargeMessages = field(default_factory=LargeMessages)


def get_services(connection: HTTPConnection) -> Services:
    """Return the services of the application that handles the request or WebSocket."""
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDependency = Annotated[Services, Depends(get_services)]


def get_caller(request: Request, services: ServicesDependency) -> str:
    """Return the caller of the request, and count the request as open until it is answered.

    A second call for the same request returns the same caller and counts nothing.

    Raises:
        RequestRefused: the API key is missing or wrong, or the caller exceeds its rate or its
            number of open requests.
    """
    known: str | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    caller = services.authenticator.identify(bearer_key(request.headers.get("authorization")))
    if caller is None:
        raise RequestRefused(UNAUTHORIZED)
    # Without keys all clients are one caller, so these limits apply to each address instead.
    is_open, address = services.authenticator.is_open, request.client
    counted_as = address.host if is_open and address is not None else caller
    limiter = services.request_limiter
    if retry_after_s := limiter.take(counted_as):
        raise _rate_limited("Too many requests", retry_after_s)
    if limiter.is_full_for(counted_as):
        raise _rate_limited("Too many requests are open", _RETRY_AFTER_S)
    request.state.exit_stack.enter_context(limiter.open(counted_as))
    request.state.caller = caller
    return caller


def _rate_limited(reason: str, retry_after_s: float) -> RequestRefused:
    message = f"{reason}; try again in {retry_after_s:.2f} s."
    return RequestRefused(
        ErrorInfo(code="rate_limited", message=message, retry_after_s=retry_after_s)
    )


CallerDependency = Annotated[str, Depends(get_caller)]
# Only documents the header, for the Authorize button of the docs page; `get_caller` checks it.
bearer_scheme = HTTPBearer(auto_error=False, description="One of the server's API keys.")
