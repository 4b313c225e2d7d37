"""pydantic's complaints, as one clear error that names the field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from app.errors import ErrorInfo
from app.schemas.unsupported import HINTS

_MAX_MESSAGE_CHARS = 400
_MAX_PARAM_CHARS = 100
_UNSUPPORTED = {"extra_forbidden", "literal_error", "none_required"}
"""How pydantic names the refusals of what is right elsewhere."""
_UNION_TAG = re.compile(r"str|int|float|bool|[a-z-]+\[.*\]")
"""What pydantic puts into a location to tell which type of a union it tried."""


def to_error_info(
    errors: Iterable[Mapping[str, Any]], *, skip: Iterable[str] = ("body", "query", "path")
) -> ErrorInfo:
    """Return the first complaint of a `ValidationError.errors()`.

    A field of several types fails once for each; the complaint that got furthest into it wins.

    Args:
        errors: at least one.
        skip: leading parts of the location that are not fields.
    """
    located = [(_location(error, skip), error) for error in errors]
    first, _ = located[0]
    location, error = max(
        ((location, error) for location, error in located if location[:1] == first[:1]),
        key=lambda pair: len(pair[0]),
    )
    if error["type"] == "json_invalid":
        return ErrorInfo(code="invalid_json", message="The body is not valid JSON.")
    param = printable(_join(location)) or None
    reason = "unknown field" if error["type"] == "extra_forbidden" else str(error["msg"])
    if param in HINTS and error["type"] in _UNSUPPORTED:
        what = "is not supported" if error["type"] == "extra_forbidden" else reason
        reason = f"{what}: {HINTS[param]}"
    message = f"{param}: {reason}" if param else reason
    return ErrorInfo(code="invalid_request", message=message[:_MAX_MESSAGE_CHARS], param=param)


def _location(error: Mapping[str, Any], skip: Iterable[str]) -> list[str]:
    location = [f"[{part}]" if isinstance(part, int) else str(part) for part in error["loc"]]
    if location and location[0] in skip:
        location = location[1:]
    return location[:1] + [part for part in location[1:] if not _UNION_TAG.fullmatch(part)]


def _join(location: Iterable[str]) -> str:
    """Return the path to a field as OpenAI writes it: messages[0].content."""
    return re.sub(r"\.(?=\[\d+\])", "", ".".join(location))


def printable(text: str) -> str:
    """Return a client's field name as it can be shown: cut, and without lone surrogates."""
    return text[:_MAX_PARAM_CHARS].encode(errors="replace").decode()
