"""`GET /v1/models`: the served model, in OpenAI's form."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from app.dependencies import CallerDependency, Services, ServicesDependency, bearer_scheme
from app.schemas.error import error_responses
from streaming.errors import ModelNotFound

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(bearer_scheme)])


class Model(BaseModel):
    """A served model."""

    id: str = Field(examples=["SmolLM2-135M-Instruct"])
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds when the server began to serve it.")
    owned_by: str = "tokenwire"
    max_model_len: int = Field(description="Context length in tokens: prompt and answer together.")


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("", responses=error_responses("rate_limited", "unauthorized"))
async def list_models(_: CallerDependency, services: ServicesDependency) -> ModelList:
    """List the served models. A server serves exactly one."""
    return ModelList(data=[_served_model(services)])


@router.get(
    "/{model_id:path}",
    responses=error_responses("rate_limited", "unauthorized", "model_not_found", "invalid_request"),
)
async def get_model(model_id: str, _: CallerDependency, services: ServicesDependency) -> Model:
    """Describe a model by its id."""
    served = services.engine.info.model_id
    if model_id != served:
        raise ModelNotFound(model=model_id, served=served)
    return _served_model(services)


def _served_model(services: Services) -> Model:
    info = services.engine.info
    return Model(
        id=info.model_id, created=int(services.created_at), max_model_len=info.max_model_len
    )
