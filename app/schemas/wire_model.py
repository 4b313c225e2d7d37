"""The base class of all requests and client frames."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

_MAX_FIELDS = 64


class WireModel(BaseModel):
    """A JSON object from a client. Unknown fields and wrong types are errors.

    Validation must stop at the first error of a list (`fail_fast`). To collect the errors of a
    hundred thousand entries takes seconds, and blocks the event loop meanwhile.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_num_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and len(fields) > _MAX_FIELDS:
            raise PydanticCustomError(
                "too_many_fields",
                "must have at most {most} fields (got {actual})",
                {"most": _MAX_FIELDS, "actual": len(fields)},
            )
        return fields
