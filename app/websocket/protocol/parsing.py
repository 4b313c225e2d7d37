"""Parses text frames: JSON to an object, and the object to a message of the dialect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from app.errors import ErrorInfo, RequestRefused
from app.json.json_object import FieldsRefused, parse_object

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


def peek_fields(frame: str | bytes) -> dict[str, Any]:
    """Return the object of a frame that is refused unread, for its id; {} if that takes reading."""
    if len(frame) > _MAX_GLANCE_CHARS:
        return {}
    try:
        return parse_object(frame, what="frame")
    except RequestRefused:
        return {}
