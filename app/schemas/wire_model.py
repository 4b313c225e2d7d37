"""A JSON object from a client."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

_MAX_FIELDS = 64


class WireModel(BaseModel):
    """A JSON object from a client: unknown fields and wrong types are errors.

    Checks end at the first of many errors: collecting them takes seconds where a client sends a
    list of a hundred thousand wrong entries, and no other request is served meanwhile.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_num_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and len(fields) > _MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", f"more than {_MAX_FIELDS} fields")
        return fields
