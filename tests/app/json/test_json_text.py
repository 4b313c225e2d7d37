from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from app.json.json_text import (
    ASCII,
    COMPACT,
    LARGE_OUTPUT_BYTES,
    SPACED,
    is_large,
    to_json,
    to_json_soon,
)

LARGE: dict[str, Any] = {
    "text": "é\n\u2028" * 30_000,
    "logprobs": [{"token": "é", "logprob": -0.5, "top": [{"bytes": [1, 2]}]}] * 3000,
    "nested": {"empty": [], "none": None, "yes": True, "tuple": ("a", {"b": 1.5}) * 3000},
    "few": [{"text": "x" * LARGE_OUTPUT_BYTES}, {}],
}


@pytest.mark.parametrize("encoder", [SPACED, COMPACT, ASCII])
@pytest.mark.parametrize("value", [LARGE, {"a": ["b", 1]}, [], {}, "x" * 10**6, None])
async def test_the_pieces_join_to_the_output_of_the_encoder(encoder: json.JSONEncoder, value: Any):
    assert to_json(value, encoder=encoder) == encoder.encode(value)
    assert await to_json_soon(value, encoder=encoder) == encoder.encode(value)


def test_the_limit_counts_text_keys_and_values():
    assert not is_large("x" * (LARGE_OUTPUT_BYTES - 8))
    assert is_large("x" * (LARGE_OUTPUT_BYTES - 7))
    assert is_large([1] * (LARGE_OUTPUT_BYTES // 8))
    assert is_large({"x" * LARGE_OUTPUT_BYTES: 1})
    assert not is_large({"a": [{"b": "c"}] * 100})


async def test_large_values_are_serialized_on_another_thread():
    class Seen(json.JSONEncoder):
        def encode(self, o: Any) -> str:
            threads.add(threading.current_thread() is threading.main_thread())
            return super().encode(o)

    for value, is_on_main_thread in ((LARGE, False), ({"a": 1}, True)):
        threads: set[bool] = set()
        await to_json_soon(value, encoder=Seen())
        assert threads == {is_on_main_thread}


def test_each_piece_is_small():
    sizes: list[int] = []

    class Measured(json.JSONEncoder):
        def encode(self, o: Any) -> str:
            text = super().encode(o)
            if not isinstance(o, str):
                sizes.append(len(text))
            return text

    to_json(LARGE, encoder=Measured(ensure_ascii=False))
    assert max(sizes) < 4 * LARGE_OUTPUT_BYTES
