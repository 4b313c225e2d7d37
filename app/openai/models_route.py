"""Which model is served."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from app.dependencies import CallerDependency, Services, ServicesDependency, bearer_scheme
from app.openai.schemas.models import Model, ModelList
from app.schemas.error import error_responses
from streaming.errors import ModelNotFound

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(bearer_scheme)])


@router.get("", responses=error_responses("rate_limited", "unauthorized"))
async def list_models(_: CallerDependency, services: ServicesDependency) -> ModelList:
    """List the models: there is one."""
    return ModelList(data=[_describe(services)])


@router.get(
    "/{model_id:path}",
    responses=error_responses("rate_limited", "unauthorized", "model_not_found", "invalid_request"),
)
async def get_model(model_id: str, _: CallerDependency, services: ServicesDependency) -> Model:
    """Describe the model of this id."""
    served = services.engine.info.model_id
    if model_id != served:
        raise ModelNotFound(model=model_id, served=served)
    return _describe(services)


def _describe(services: Services) -> Model:
    info = services.engine.info
    return Model(
        id=info.model_id, created=int(services.created_at), max_model_len=info.max_model_len
    )
