"""Validates the messages of `WS /v1/stream`: converts a frame's JSON object to a message."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from app.errors import ErrorInfo, RequestRefused
from app.schemas.validation import to_error_info
from app.stream.schemas.messages import (
    CLIENT_MESSAGE,
    CLIENT_MESSAGE_TYPES,
    CancelMessage,
    GenerateMessage,
    ResumeMessage,
)

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_QUOTED_CHARS = 64


def to_message(fields: dict[str, Any]) -> GenerateMessage | CancelMessage | ResumeMessage:
    """Return the object as a message.

    Raises:
        RequestRefused: the type is unknown, or a field is unknown, missing or invalid.
    """
    kind = fields.get("type")
    if isinstance(kind, str) and kind not in CLIENT_MESSAGE_TYPES:
        known = ", ".join(CLIENT_MESSAGE_TYPES)
        raise _refused(
            "unknown_type",
            f"type: {kind[:_MAX_QUOTED_CHARS]!r} is unknown; use one of {known}",
            param="type",
        )
    if not isinstance(kind, str):
        raise _refused("invalid_request", "type: is required and must be a string", param="type")
    try:
        return CLIENT_MESSAGE.validate_python(fields)
    except ValidationError as error:
        info = to_error_info(
            error.errors(include_url=False),
            skip=CLIENT_MESSAGE_TYPES,
        )
        raise _refused(
            info.code, info.message, param=info.param and info.param[:_MAX_QUOTED_CHARS]
        ) from error


def requested_stream_id(fields: dict[str, Any]) -> str | None:
    """Return the valid stream id of a `generate` or `resume`, or None."""
    if fields.get("type") not in ("generate", "resume"):
        return None
    stream_id = fields.get("id")
    is_valid = isinstance(stream_id, str) and _ID.fullmatch(stream_id)
    return stream_id if is_valid else None


def _refused(code: str, message: str, *, param: str | None = None) -> RequestRefused:
    return RequestRefused(ErrorInfo(code=code, message=message, param=param))
