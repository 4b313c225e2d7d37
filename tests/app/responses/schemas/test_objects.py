"""The typed dictionaries have the keys of the objects that the code makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import pytest

from app.responses.schemas.objects import EventObject, Item
from app.responses.schemas.request import ResponseRequest
from streaming import FinishReason
from tests.app.responses.logs import REASONING, call, make_log, write

INPUT: list[Any] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho", "phase": "commentary"},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "42"},
    {"type": "reasoning", "summary": []},
    {"type": "item_reference", "id": "msg_1"},
]
OUTPUT = make_log(
    *f"<think>hm</think>so {call('f', '{}')}",
    end=FinishReason.TOOL_CALLS,
    output_format=REASONING,
    logprobs=True,
)


def kind_of(typed: type) -> str:
    """Return the `type` of a typed dictionary's objects."""
    kind: str
    [kind] = get_args(get_type_hints(typed)["type"])
    return kind


TYPES = {kind_of(typed): typed for typed in get_args(Item)}


def assert_has_keys_of(typed: type, item: Mapping[str, Any]) -> None:
    hints = get_type_hints(typed, include_extras=True)
    required = {name for name, hint in hints.items() if get_origin(hint) is not NotRequired}
    assert required <= set(item) <= set(hints)


@pytest.mark.parametrize("given", INPUT)
def test_input_items_have_the_declared_keys(given: dict[str, Any]):
    [item] = ResponseRequest.model_validate({"input": [given]}).to_items("k")
    assert_has_keys_of(TYPES[item["type"]], item)


def test_output_items_have_the_declared_keys():
    output = write(OUTPUT, reports_logprobs=True)[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    for item in output:
        assert_has_keys_of(TYPES[item["type"]], item)


def test_events_have_declared_keys_only():
    declared = set(get_type_hints(EventObject))
    seen = {name for event in write(OUTPUT, reports_logprobs=True) for name in event}
    assert seen == declared - {"stream_id"}, "a stream's id is added by its socket"
