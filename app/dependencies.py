"""What routes need, given to them by FastAPI; built once in `create_app`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.requests import HTTPConnection
from fastapi.security import HTTPBearer

from app.auth import Authenticator, bearer_key
from app.connections import ConnectionRegistry
from app.errors import ErrorInfo, RequestRefused
from app.responses.service import ResponseService
from app.settings import Settings
from streaming import AsyncEngine

UNAUTHORIZED = ErrorInfo(
    code="unauthorized", message="A valid API key is needed: Authorization: Bearer KEY."
)


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a route may use."""

    settings: Settings
    engine: AsyncEngine
    authenticator: Authenticator
    connections: ConnectionRegistry
    responses: ResponseService
    started_at: float
    """Monotonic seconds."""
    created_at: float = field(default_factory=time.time)
    """The same moment in unix seconds, for people."""


def get_services(connection: HTTPConnection) -> Services:
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDependency = Annotated[Services, Depends(get_services)]


def get_caller(request: Request, services: ServicesDependency) -> str:
    """Return who calls.

    Raises:
        RequestRefused: keys are set and the request has none of them.
    """
    caller = services.authenticator.identify(bearer_key(request.headers.get("authorization")))
    if caller is None:
        raise RequestRefused(UNAUTHORIZED)
    return caller


# The scheme only documents the header, for the Authorize button of the docs page.
CallerDependency = Annotated[str, Depends(get_caller)]
bearer_scheme = HTTPBearer(auto_error=False, description="One of the server's API keys.")
