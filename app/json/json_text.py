"""Writing JSON that may be large, without holding the interpreter for long.

`json.dumps` is one call into C that keeps the interpreter lock: on a worker thread, too, nothing
else in the process runs until it is done, tens of milliseconds for a long answer with its log
probabilities. So what is large is written in pieces, between which other threads have their turn.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

LARGE_OUTPUT_BYTES = 32_768
"""Written at once up to here: about half a millisecond."""
_VALUE_BYTES = 8
"""What a value counts beside its characters."""

SPACED = json.JSONEncoder(ensure_ascii=False)
COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
ASCII = json.JSONEncoder()
"""One byte a character, whatever the text."""


def is_large(value: Any) -> bool:
    """Return whether the JSON of a value is large; takes 0.5 ms at most."""
    return _bytes_left(value, LARGE_OUTPUT_BYTES) < 0


def to_json(value: Any, *, encoder: json.JSONEncoder = SPACED) -> str:
    """Return a value as JSON.

    Takes time by its size: call it for what is large on a worker thread, or await `to_json_soon`.
    """
    return "".join(_pieces(value, encoder))


async def to_json_soon(value: Any, *, encoder: json.JSONEncoder = SPACED) -> str:
    """Return a value as JSON; what is large is written on a worker thread."""
    if is_large(value):
        return await asyncio.to_thread(to_json, value, encoder=encoder)
    return encoder.encode(value)


def _bytes_left(value: Any, num_bytes: int) -> int:
    """Return what is left of `num_bytes` after a value; stops as soon as nothing is."""
    num_bytes -= _VALUE_BYTES
    if isinstance(value, str):
        return num_bytes - len(value)
    if isinstance(value, dict):
        for key, each in value.items():
            num_bytes = _bytes_left(each, num_bytes - len(str(key)))
            if num_bytes < 0:
                return num_bytes
    elif isinstance(value, list | tuple):
        for each in value:
            num_bytes = _bytes_left(each, num_bytes)
            if num_bytes < 0:
                return num_bytes
    return num_bytes


def _pieces(value: Any, encoder: json.JSONEncoder) -> Iterator[str]:
    if not (isinstance(value, dict | list | tuple) and value and is_large(value)):
        yield encoder.encode(value)
    elif isinstance(value, dict):
        before = "{"
        for key, each in value.items():
            yield f"{before}{encoder.encode(str(key))}{encoder.key_separator}"
            yield from _pieces(each, encoder)
            before = encoder.item_separator
        yield "}"
    else:
        before = "["
        for each in value:
            yield before
            yield from _pieces(each, encoder)
            before = encoder.item_separator
        yield "]"
