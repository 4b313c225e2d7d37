"""Checks the messages of `WS /v1/stream`: a frame's JSON object to a `ClientMessage`."""

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
_MAX_SHOWN_CHARS = 64


def to_message(fields: dict[str, Any]) -> GenerateMessage | CancelMessage | ResumeMessage:
    """Return the message that the object is.

    Raises:
        RequestRefused: its type is unknown, or a field is unknown, missing or wrong.
    """
    kind = fields.get("type")
    if isinstance(kind, str) and kind not in CLIENT_MESSAGE_TYPES:
        known = ", ".join(CLIENT_MESSAGE_TYPES)
        raise _refused(
            "unknown_type",
            f"type: {kind[:_MAX_SHOWN_CHARS]!r} is not one of {known}",
            param="type",
        )
    if not isinstance(kind, str):
        raise _refused("invalid_request", "type: must be given, as a string", param="type")
    try:
        return CLIENT_MESSAGE.validate_python(fields)
    except ValidationError as error:
        info = to_error_info(
            error.errors(include_url=False, include_input=False, include_context=False),
            skip=CLIENT_MESSAGE_TYPES,
        )
        raise _refused(
            info.code, info.message, param=info.param and info.param[:_MAX_SHOWN_CHARS]
        ) from error


def attempted_id(fields: dict[str, Any]) -> str | None:
    """Return the client's valid name for the stream that it tried to begin, if there is one."""
    if fields.get("type") not in ("generate", "resume"):
        return None
    stream_id = fields.get("id")
    is_valid = isinstance(stream_id, str) and _ID.fullmatch(stream_id)
    return stream_id if is_valid else None


def _refused(code: str, message: str, *, param: str | None = None) -> RequestRefused:
    return RequestRefused(ErrorInfo(code=code, message=message, param=param))
