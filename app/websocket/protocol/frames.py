"""The output of every protocol core: JSON frames, and the command to close the socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

Frame = Mapping[str, object]
"""A JSON object, sent as one text frame."""


@dataclass(frozen=True, slots=True)
class Close:
    """Command to close the socket (codes: RFC 6455 §7.4.1) after all queued frames are sent."""

    code: int
    reason: str


def serialize(frame: Frame) -> str:
    """Return the frame as compact JSON; non-ASCII characters are not escaped."""
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":"))
