"""Frames from the server to a client, whatever the dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping

Frame = Mapping[str, object]
"""A JSON object that is sent as one text frame."""


def serialize(frame: Frame) -> str:
    """Return a frame's text: compact JSON, with non-ASCII characters as they are."""
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":"))
