"""Serializes JSON that may be large without holding the GIL for long.

`json.dumps` is one call into C that holds the GIL, on a worker thread as well. A long answer with
log probabilities blocks the whole process for tens of milliseconds. Large values are therefore
serialized in pieces, so that other threads can run in between.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

LARGE_OUTPUT_BYTES = 32_768
"""Largest output to serialize in one call, which takes about 0.5 ms."""
_VALUE_BYTES = 8
"""Added to the size of each value, for its punctuation."""

SPACED = json.JSONEncoder(ensure_ascii=False)
COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
ASCII = json.JSONEncoder()
"""Escapes non-ASCII characters, so that each character of the output is one byte."""


def is_large(value: Any) -> bool:
    """Return whether the JSON of a value is larger than `LARGE_OUTPUT_BYTES`, in at most 0.5 ms."""
    return _bytes_left(value, LARGE_OUTPUT_BYTES) < 0


def to_json(value: Any, *, encoder: json.JSONEncoder = SPACED) -> str:
    """Return a value as JSON.

    Call it for large values on a worker thread, or await `to_json_soon` instead.
    """
    return "".join(_pieces(value, encoder))


async def to_json_soon(value: Any, *, encoder: json.JSONEncoder = SPACED) -> str:
    """Return a value as JSON, serialized on a worker thread if it is large."""
    if is_large(value):
        return await asyncio.to_thread(to_json, value, encoder=encoder)
    return encoder.encode(value)


def _bytes_left(value: Any, num_bytes: int) -> int:
    """Return `num_bytes` less the size of a value; stop once the result is negative."""
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
