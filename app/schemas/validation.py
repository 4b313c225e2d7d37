"""pydantic's complaints, as one clear error that names the field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.errors import ErrorInfo

_MAX_MESSAGE_CHARS = 400


def to_error_info(
    errors: Iterable[Mapping[str, Any]], *, skip: Iterable[str] = ("body", "query", "path")
) -> ErrorInfo:
    """Return the first complaint of a `ValidationError.errors()`.

    Args:
        errors: at least one.
        skip: leading parts of the location that are not fields.
    """
    error = next(iter(errors))
    location = [str(part) for part in error["loc"]]
    if location and location[0] in skip:
        location = location[1:]
    param = ".".join(location) or None
    is_json_error = error["type"] == "json_invalid"
    if is_json_error:
        return ErrorInfo(code="invalid_json", message="The body is not valid JSON.")
    if error["type"] == "extra_forbidden":
        reason = "unknown field"
    else:
        reason = str(error["msg"])
    message = f"{param}: {reason}" if param else reason
    return ErrorInfo(code="invalid_request", message=message[:_MAX_MESSAGE_CHARS], param=param)
