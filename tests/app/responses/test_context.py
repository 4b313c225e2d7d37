from __future__ import annotations

from typing import Any

import pytest

from app.responses.context import MAX_CONTEXT_BYTES, Context
from streaming.errors import InvalidRequest

LARGE: Any = {"text": "x" * (MAX_CONTEXT_BYTES - len('[{"text": ""}]'))}


SMALL: Any = {}


def to_item(name: str) -> Any:
    return {"id": name}


def test_own_items_come_last():
    a, b, c = (to_item(name) for name in "abc")
    context = Context.of((a,), (b, c))
    assert [item["id"] for item in context.items] == ["a", "b", "c"]
    assert [item["id"] for item in context.own] == ["b", "c"]
    assert context.num_bytes == len('[{"id": "a"}, {"id": "b"}, {"id": "c"}]')


def test_the_size_of_a_conversation_is_limited():
    assert Context.of((LARGE,), ()).num_bytes == MAX_CONTEXT_BYTES
    with pytest.raises(InvalidRequest, match="larger than 8388608") as refused:
        Context.of((LARGE,), (SMALL,))
    assert refused.value.param == "previous_response_id"
    with pytest.raises(InvalidRequest) as refused:
        Context.of((), (LARGE, SMALL))
    assert refused.value.param == "input"


def test_a_conversation_that_is_too_large_is_not_encoded_whole():
    """One large item can be referenced 4,096 times, which would be gigabytes of JSON."""
    never_encoded: Any = {"text": object()}
    with pytest.raises(InvalidRequest):
        Context.of((), (LARGE, SMALL, never_encoded))
