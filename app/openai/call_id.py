"""The names of tool calls."""

from __future__ import annotations

import hashlib

from streaming import Generation

_NUM_HEX_CHARS = 24


def call_id(generation: Generation, index: int) -> str:
    """Return the id of a log's call, the same for everyone who reads the log.

    It tells nothing of the generation's own id, which lets its caller resume.
    """
    digest = hashlib.sha256(f"{generation.generation_id}/{index}".encode()).hexdigest()
    return f"call_{digest[:_NUM_HEX_CHARS]}"
