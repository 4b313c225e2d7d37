"""Health checks: `/health`, `/livez` and `/readyz`; no API key is required."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from app.dependencies import Services, ServicesDependency
from app.schemas.health import Health, Liveness, ServerStatus, StoreHealth, StoreStatus

_RETRY_AFTER_S = 1

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get(
    "/health",
    responses={503: {"model": Health, "description": "The server does not accept requests."}},
)
async def get_health(request: Request, response: Response, services: ServicesDependency) -> Health:
    """Return the model and the load of the server."""
    status = _status(services)
    _set_readiness(response, status)
    info, stats = services.engine.info, services.engine.stats
    return Health(
        status=status,
        model_loaded=status in (ServerStatus.OK, ServerStatus.DRAINING),
        model=info.model_id,
        version=request.app.version,
        uptime_s=round(time.monotonic() - services.started_at, 3),
        active=stats.num_running,
        queued=stats.num_waiting,
        connections=len(services.connections),
        backend=info.backend,
        dtype=info.dtype,
        device=info.device,
        max_model_len=info.max_model_len,
        has_chat_template=info.has_chat_template,
        batch_invariant=info.batch_invariant,
        attention=info.attention,
        store=_store_health(services),
    )


@router.head("/livez", include_in_schema=False)
@router.get(
    "/livez",
    responses={
        503: {"model": Liveness, "description": "The engine has failed; restart the server."}
    },
)
async def get_liveness(response: Response, services: ServicesDependency) -> Liveness:
    """Answer 200 while the process works, 503 when its engine has failed for good."""
    if services.engine.has_failed:
        _set_readiness(response, ServerStatus.FAILED)
        return Liveness(status=ServerStatus.FAILED)
    return Liveness(status=ServerStatus.OK)


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    responses={503: {"model": Liveness, "description": "The server does not accept requests."}},
)
async def get_readiness(response: Response, services: ServicesDependency) -> Liveness:
    """Answer 200 while the server accepts requests, otherwise 503."""
    status = _status(services)
    _set_readiness(response, status)
    return Liveness(status=status)


def _status(services: Services) -> ServerStatus:
    engine = services.engine
    if engine.has_failed:
        return ServerStatus.FAILED
    if engine.is_shutting_down or services.connections.is_draining:
        return ServerStatus.DRAINING
    return ServerStatus.OK if engine.is_ready else ServerStatus.LOADING


def _store_health(services: Services) -> StoreHealth:
    if not services.responses.registry.has_store:
        return StoreHealth(status=StoreStatus.OFF, reason=None)
    problem = services.responses.registry.store_problem
    status = StoreStatus.OK if problem is None else StoreStatus.UNAVAILABLE
    return StoreHealth(status=status, reason=problem)


def _set_readiness(response: Response, status: ServerStatus) -> None:
    if status is not ServerStatus.OK:
        response.status_code = 503
        response.headers["retry-after"] = str(_RETRY_AFTER_S)
