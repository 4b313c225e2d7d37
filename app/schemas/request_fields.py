"""Fields and limits of requests that several dialects share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

DEFAULT_MAX_TOKENS = 16
"""Of a raw prompt, as in OpenAI's completions; a chat answer may take what the context leaves."""

MAX_MESSAGES = 4096
MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _check_num_pairs(value: Any) -> Any:
    # Counted first: checking a hundred thousand pairs would hold up everyone else.
    if isinstance(value, dict) and len(value) > MAX_METADATA_PAIRS:
        raise PydanticCustomError("too_many_pairs", f"at most {MAX_METADATA_PAIRS} pairs")
    return value


Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARS)],
        Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARS)],
    ],
    BeforeValidator(_check_num_pairs),
]
