"""One text frame of a client, from JSON to a checked message."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from pydantic import ValidationError

from app.errors import ErrorInfo, RequestRefused
from app.schemas.stream import (
    CLIENT_MESSAGE,
    CLIENT_MESSAGE_TYPES,
    CancelMessage,
    GenerateMessage,
    ResumeMessage,
)
from app.schemas.validation import to_error_info

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_SHOWN_CHARS = 64
_MAX_GLANCE_CHARS = 4096


def parse_object(frame: str) -> dict[str, Any]:
    """Return the frame's JSON object.

    Raises:
        RequestRefused: it is no JSON (RFC 8259, so no NaN and no Infinity), or no object.
    """
    try:
        fields = json.loads(frame, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        position = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise _refused("invalid_json", f"The frame is not valid JSON{position}.") from error
    if not isinstance(fields, dict):
        raise _refused("invalid_request", "The frame is not a JSON object.")
    return fields


def glance_at(frame: str) -> dict[str, Any]:
    """Return the object of a frame that is refused unread, for its id; {} if that takes reading."""
    if len(frame) > _MAX_GLANCE_CHARS:
        return {}
    try:
        return parse_object(frame)
    except RequestRefused:
        return {}


def check_unicode(fields: dict[str, Any], frame: str) -> None:
    """Refuse half a surrogate pair: it is no text, and could never be sent back.

    Raises:
        RequestRefused: there is one somewhere in the object that the frame was parsed into.
    """
    if not _SURROGATE_ESCAPE.search(frame):
        return  # the frame itself was UTF-8, so half a pair can only come from an escape
    for name, value in fields.items():
        if not _is_unicode(name):
            raise _refused("invalid_request", "A field's name has a lone surrogate.")
        if not _is_unicode(value):
            shown = name[:_MAX_SHOWN_CHARS]
            reason = "is not valid Unicode: it has a lone surrogate"
            raise _refused("invalid_request", f"{shown}: {reason}", param=shown)


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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(code: str, message: str, *, param: str | None = None) -> RequestRefused:
    return RequestRefused(ErrorInfo(code=code, message=message, param=param))
