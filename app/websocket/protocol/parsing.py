"""Parses client frames: JSON text to an object, and the object to a message of the dialect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from app.errors import ErrorInfo, RequestRefused
from app.json.json_object import FieldsRefused, parse_object

_MAX_PEEK_CHARS = 4096


MessageT = TypeVar("MessageT")


@dataclass(frozen=True, slots=True)
class Parsed(Generic[MessageT]):
    """The result of parsing one frame: a message or a refusal.

    Attributes:
        message: the message; None if the frame is refused.
        refusal: the error to answer with; None if there is a message.
        fields: the fields of the frame's object, as far as they could be parsed.
        num_chars: size of the frame; 0 if it is refused.
    """

    message: MessageT | None
    refusal: ErrorInfo | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    num_chars: int = 0


def parse_frame(
    frame: str | bytes, to_message: Callable[[dict[str, Any]], MessageT]
) -> Parsed[MessageT]:
    """Parse one frame. Pure, so it can run in another thread.

    Args:
        frame: JSON text, or its UTF-8 bytes.
        to_message: converts the frame's object to a message, or raises `RequestRefused`.
    """
    fields: dict[str, Any] = {}
    try:
        fields = parse_object(frame, what="frame")
        return Parsed(to_message(fields), fields=fields, num_chars=len(frame))
    except FieldsRefused as refused:
        return Parsed(None, refused.info, refused.fields)
    except RequestRefused as refused:
        return Parsed(None, refused.info, fields)


def peek_fields(frame: str | bytes) -> dict[str, Any]:
    """Return the fields of a rate-limited frame, so that the error can carry its id.

    Return {} for an invalid or long frame: a refusal must stay cheap.
    """
    if len(frame) > _MAX_PEEK_CHARS:
        return {}
    try:
        return parse_object(frame, what="frame")
    except RequestRefused:
        return {}
