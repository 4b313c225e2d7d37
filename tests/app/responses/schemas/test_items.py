from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from app.responses.schemas.items import (
    CompactionItem,
    FunctionCallItem,
    FunctionCallOutputItem,
    MessageItem,
    check_supported_content,
    decode_summary,
    encode_summary,
)

# Summaries.


@pytest.mark.parametrize("summary", ["", "hello", "h€llo 👋\n" * 100])
def test_a_summary_comes_back_as_it_was(summary: str):
    assert decode_summary(encode_summary(summary)) == summary


@pytest.mark.parametrize(
    "content",
    [
        "",
        "gAAAAA",
        encode_summary("a")[:-1],
        encode_summary("a") + "é",
        encode_summary("") + "_w==",
    ],
)
def test_content_that_is_not_a_summary_is_refused(content: str):
    with pytest.raises(ValueError, match="was not made by this server"):
        decode_summary(content)


# Items.


def test_text_of_the_assistant_becomes_output_and_refusals_stay():
    parts = [{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "no"}]
    for role, kind in (("assistant", "output_text"), ("developer", "input_text")):
        item = MessageItem.model_validate({"role": role, "content": parts}).to_item("k")
        assert [part["type"] for part in item["content"]] == [kind, "refusal"]
        assert (item["role"], item["id"]) == (role, "msg_k")


@pytest.mark.parametrize(
    ("arguments", "kept"), [("", "{}"), (" \n", "{}"), (' {"a": 1} ', '{"a": 1}')]
)
def test_arguments_are_stripped_and_never_empty(arguments: str, kept: str):
    fields = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    assert FunctionCallItem.model_validate(fields).arguments == kept


@pytest.mark.parametrize("arguments", ["[]", "{", "1", "[" * 100_000, '{"a": 1} x'])
def test_arguments_that_are_not_an_object_are_refused(arguments: str):
    fields = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    with pytest.raises(ValidationError, match="must be a JSON object"):
        FunctionCallItem.model_validate(fields)


def test_parts_of_a_call_output_become_text():
    output = [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    fields = {"type": "function_call_output", "call_id": "c", "output": output}
    assert FunctionCallOutputItem.model_validate(fields).to_item("k")["output"] == [
        {"type": "input_text", "text": "a"},
        {"type": "input_text", "text": "b"},
    ]


def test_a_forged_compaction_item_is_refused():
    assert CompactionItem(type="compaction", encrypted_content=encode_summary("a")).to_item("k")
    with pytest.raises(ValidationError, match="was not made by this server"):
        CompactionItem(type="compaction", encrypted_content="gAAAAA")


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"type": "web_search_call"}], "input[0]"),
        ([{}, {"role": "user", "content": [{}, {"type": "input_image"}]}], "input[1].content[1]"),
        ([{"type": "function_call_output", "output": [{"type": "x"}]}], "input[0].output[0]"),
    ],
)
def test_unsupported_content_is_refused_with_its_location(items: Any, param: str):
    with pytest.raises(PydanticCustomError) as refused:
        check_supported_content(items)
    assert refused.value.type == "unsupported_content"
    assert refused.value.context is not None
    assert refused.value.context["param"] == param
    assert refused.value.message().startswith(f"{param}: ")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "hi",
        [5, {}, {"type": None}],
        [{"type": "reasoning", "content": [{"type": "reasoning_text"}]}],
        [{"role": "user", "content": [{"type": "input_text"}, 5, "x"]}],
    ],
)
def test_other_content_is_left_to_validation(value: Any):
    check_supported_content(value)
