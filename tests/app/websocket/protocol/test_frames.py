from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from app.websocket.protocol.frames import serialize
from tests.support import property_test


def test_serialized_text_is_compact_and_not_escaped() -> None:
    frame = {"type": "started", "id": "é😀", "prompt_tokens": 5, "cached_tokens": None}
    expected = '{"type":"started","id":"é😀","prompt_tokens":5,"cached_tokens":null}'
    assert serialize(frame) == expected


@property_test
@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_serialized_text_parses_to_the_frame(frame: dict[str, object]) -> None:
    assert json.loads(serialize(frame)) == frame
