"""What routes need, given to them by FastAPI; built once in `create_app`."""

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
    code="unauthorized", message="A valid API key is needed: Authorization: Bearer KEY."
)
_RETRY_AFTER_S = 1.0
"""Said to a caller that has too many requests open: how long they last, nobody knows."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a route may use."""

    settings: Settings
    engine: AsyncEngine
    authenticator: Authenticator
    connections: ConnectionRegistry
    requests: RequestLimiter
    responses: ResponseService
    started_at: float
    """Monotonic seconds."""
    created_at: float = field(default_factory=time.time)
    """The same moment in unix seconds, for people."""
    large: LargeMessages = field(default_factory=LargeMessages)
    """Parses what is too large for the event loop."""


def get_services(connection: HTTPConnection) -> Services:
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDependency = Annotated[Services, Depends(get_services)]


def get_caller(request: Request, services: ServicesDependency) -> str:
    """Return who calls, and count the request until it is answered, however often this is asked.

    Raises:
        RequestRefused: keys are set and the request has none of them; or the caller has made too
            many requests of late, or has too many open.
    """
    known: str | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    caller = services.authenticator.identify(bearer_key(request.headers.get("authorization")))
    if caller is None:
        raise RequestRefused(UNAUTHORIZED)
    # Without keys all are one caller; these limits at least are each address's own.
    is_open, address = services.authenticator.is_open, request.client
    counted = address.host if is_open and address is not None else caller
    if retry_after_s := services.requests.refused_for_s(counted):
        raise _rate_limited("Too many requests", retry_after_s)
    if services.requests.is_full_for(counted):
        raise _rate_limited("As many requests as one caller may have are open", _RETRY_AFTER_S)
    request.state.held.enter_context(services.requests.open(counted))
    request.state.caller = caller
    return caller


def _rate_limited(reason: str, retry_after_s: float) -> RequestRefused:
    message = f"{reason}; try again in {retry_after_s:.2f} s."
    return RequestRefused(
        ErrorInfo(code="rate_limited", message=message, retry_after_s=retry_after_s)
    )


# The scheme only documents the header, for the Authorize button of the docs page.
CallerDependency = Annotated[str, Depends(get_caller)]
bearer_scheme = HTTPBearer(auto_error=False, description="One of the server's API keys.")
