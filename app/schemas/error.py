"""The body of every error, and how the docs page shows it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from app.errors import ERRORS


class ErrorDetail(BaseModel):
    message: str = Field(description="For people; safe to show.")
    type: str = Field(description="OpenAI's family of the error.")
    param: str | None = Field(description="The field at fault.")
    code: str = Field(description="For programs; never changes its meaning.")


class ErrorBody(BaseModel):
    """OpenAI's form of an error."""

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
"""What a route that takes a body and generates may answer."""


def error_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return what a route documents for these errors, by HTTP status."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(ERRORS[code].http_status, []).append(code)
    return {
        status: {"model": ErrorBody, "description": f"`{'`, `'.join(names)}`"}
        for status, names in sorted(by_status.items())
    }
