from __future__ import annotations

import pytest

from app.responses.context import MAX_CONTEXT_BYTES, Context
from app.responses.schemas.items import Item
from streaming.errors import InvalidRequest

LARGE: Item = {"text": "x" * (MAX_CONTEXT_BYTES - len('[{"text": ""}]'))}


def test_own_items_come_last():
    context = Context.of(({"id": "a"},), ({"id": "b"}, {"id": "c"}))
    assert [item["id"] for item in context.items] == ["a", "b", "c"]
    assert [item["id"] for item in context.own] == ["b", "c"]
    assert context.num_bytes == len('[{"id": "a"}, {"id": "b"}, {"id": "c"}]')


def test_a_conversation_has_a_size():
    assert Context.of((LARGE,), ()).num_bytes == MAX_CONTEXT_BYTES
    with pytest.raises(InvalidRequest, match="at most 8388608") as refused:
        Context.of((LARGE,), ({},))
    assert refused.value.param == "previous_response_id"
    with pytest.raises(InvalidRequest) as refused:
        Context.of((), (LARGE, {}))
    assert refused.value.param == "input"


def test_a_conversation_that_is_too_large_is_not_written_whole():
    """One large item can be referred to 4,096 times: gigabytes, were all of it written."""
    never_written: Item = {"text": object()}
    with pytest.raises(InvalidRequest):
        Context.of((), (LARGE, {}, never_written))
