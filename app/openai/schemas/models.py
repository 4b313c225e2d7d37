"""The served model, in OpenAI's form."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Model(BaseModel):
    id: str = Field(examples=["SmolLM2-135M-Instruct"])
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds at which it began to be served.")
    owned_by: str = "tokenwire"
    max_model_len: int = Field(description="Prompt and answer together, in tokens.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
