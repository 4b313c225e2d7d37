"""The body of every HTTP error, and how routes document the errors that they return."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from app.errors import ERRORS


class ErrorDetail(BaseModel):
    """What is wrong, and where."""

    message: str = Field(description="For people. Safe to display.")
    type: str = Field(description="OpenAI's category of the error.")
    param: str | None = Field(description="The path of the field at fault.")
    code: str = Field(description="For programs. The meaning of a code never changes.")


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorDetail


GENERATION_ERRORS = (
    "invalid_json",
    "unauthorized",
    "forbidden_origin",
    "model_not_found",
    "prompt_too_long",
    "message_too_big",
    "unsupported_media_type",
    "invalid_request",
    "no_token_allowed",
    "engine_error",
    "internal_error",
    "overloaded",
    "rate_limited",
    "shutting_down",
    "timeout",
)
"""Error codes of a route that takes a JSON body and generates."""


def error_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a FastAPI route that may return these codes, by HTTP status."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(ERRORS[code].http_status, []).append(code)
    return {
        status: {"model": ErrorBody, "description": f"`{'`, `'.join(names)}`"}
        for status, names in sorted(by_status.items())
    }
