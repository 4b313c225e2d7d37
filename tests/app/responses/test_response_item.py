from __future__ import annotations

import pytest

from app.responses.response_item import ItemKind, ItemStatus, OutputItem
from app.responses.schemas.items import to_output_text
from app.responses.schemas.objects import ChosenLogprobObject

LOGPROBS: list[ChosenLogprobObject] = [
    {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": []}
]


def make_item(kind: ItemKind, *texts: str, name: str = "") -> OutputItem:
    item = OutputItem(kind=kind, key="k_0", name=name)
    for text in texts:
        item.add(text)
    return item


def test_a_message_has_its_text_and_logprobs_in_one_part():
    item = make_item(ItemKind.MESSAGE, "a", "b")
    assert item.to_part(LOGPROBS) == to_output_text("ab", LOGPROBS)
    assert item.to_object(LOGPROBS) == {
        "id": "msg_k_0",
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [to_output_text("ab", LOGPROBS)],
    }


def test_reasoning_has_its_text_without_logprobs():
    item = make_item(ItemKind.REASONING, "h", "m")
    item.status = ItemStatus.INCOMPLETE
    assert item.to_part(LOGPROBS) == {"type": "reasoning_text", "text": "hm"}
    assert item.to_object([]) == {
        "id": "rs_k_0",
        "type": "reasoning",
        "status": "incomplete",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }


def test_a_call_has_its_text_as_arguments():
    item = make_item(ItemKind.FUNCTION_CALL, '{"a"', ": 1}", name="f")
    item.status = ItemStatus.COMPLETED
    assert item.to_object([]) == {
        "id": "fc_k_0",
        "type": "function_call",
        "status": "completed",
        "call_id": "call_k_0",
        "name": "f",
        "arguments": '{"a": 1}',
    }


@pytest.mark.parametrize("kind", [ItemKind.MESSAGE, ItemKind.REASONING])
def test_a_new_item_has_no_content(kind: ItemKind):
    item = make_item(kind, "a").to_object([], is_new=True)
    assert item["type"] != "function_call"
    assert item["content"] == []
