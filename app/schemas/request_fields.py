"""Request fields and limits that the dialects share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

DEFAULT_MAX_TOKENS = 16
"""For raw prompts, as in OpenAI's completions. A chat answer may use the rest of the context."""

MAX_MESSAGES = 4096
MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _check_num_pairs(value: Any) -> Any:
    # Count first: to validate a hundred thousand pairs would block the event loop.
    if isinstance(value, dict) and len(value) > MAX_METADATA_PAIRS:
        raise PydanticCustomError(
            "too_many_pairs",
            "must have at most {most} pairs (got {actual})",
            {"most": MAX_METADATA_PAIRS, "actual": len(value)},
        )
    return value


Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARS)],
        Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARS)],
    ],
    BeforeValidator(_check_num_pairs),
]
