"""One text frame of a client, from its JSON object to a checked message."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from app.errors import ErrorInfo, RequestRefused
from app.json_object import FieldsRefused, parse_object
from app.schemas.stream import (
    CLIENT_MESSAGE,
    CLIENT_MESSAGE_TYPES,
    CancelMessage,
    GenerateMessage,
    ResumeMessage,
)
from app.schemas.validation import to_error_info

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_SHOWN_CHARS = 64
_MAX_GLANCE_CHARS = 4096


MessageT = TypeVar("MessageT")


@dataclass(frozen=True, slots=True)
class Parsed(Generic[MessageT]):
    """One frame, read: a message, or why it is none.

    Attributes:
        fields: the frame's, as far as they could be read.
        num_chars: size of the frame.
    """

    message: MessageT | None
    refusal: ErrorInfo | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    num_chars: int = 0


def parse_frame(
    frame: str | bytes, to_message: Callable[[dict[str, Any]], MessageT]
) -> Parsed[MessageT]:
    """Read one frame; pure, so that a thread can do it.

    Args:
        to_message: turns its object into a message, or raises `RequestRefused`.
    """
    fields: dict[str, Any] = {}
    try:
        fields = parse_object(frame, what="frame")
        return Parsed(to_message(fields), fields=fields, num_chars=len(frame))
    except FieldsRefused as refused:
        return Parsed(None, refused.info, refused.fields)
    except RequestRefused as refused:
        return Parsed(None, refused.info, fields)


def glance_at(frame: str | bytes) -> dict[str, Any]:
    """Return the object of a frame that is refused unread, for its id; {} if that takes reading."""
    if len(frame) > _MAX_GLANCE_CHARS:
        return {}
    try:
        return parse_object(frame, what="frame")
    except RequestRefused:
        return {}


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
