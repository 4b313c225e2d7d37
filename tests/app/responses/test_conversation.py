from __future__ import annotations

from typing import Any

import pytest

from app.responses.context import Context
from app.responses.conversation import to_context, to_messages
from app.responses.schemas.items import encode_summary, to_output_text
from app.responses.schemas.request import ResponseRequest
from streaming import ChatMessage, FinishReason, ToolCall
from streaming.errors import InvalidRequest
from tests.app.responses.logs import REASONING, TOOLS, call, make_log, write

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OTHER = {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"}
HM = {"type": "reasoning_text", "text": "hm"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "42"}


def messages_of(items: Any, **more: Any) -> tuple[ChatMessage, ...]:
    body = ResponseRequest.model_validate({"input": items})
    return to_messages(Context.of((), body.to_items("key")), **more)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("hi", [ChatMessage("user", "hi")]),
        ([user("hi")], [ChatMessage("user", "hi")]),
        (
            [{"role": "developer", "content": "be nice"}, user("hi")],
            [ChatMessage("system", "be nice"), ChatMessage("user", "hi")],
        ),
        (
            [user("hi"), {"role": "system", "content": "be nice"}, user("ho")],
            [
                ChatMessage("user", "hi"),
                ChatMessage("system", "be nice"),
                ChatMessage("user", "ho"),
            ],
        ),
        (
            [
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "a"},
                        {"type": "input_text", "text": "b"},
                    ],
                },
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "c", "annotations": [], "logprobs": []},
                        {"type": "refusal", "refusal": "d"},
                    ],
                },
            ],
            [ChatMessage("user", "a\nb"), ChatMessage("assistant", "c\nd")],
        ),
        (
            [
                user("hi"),
                {"type": "reasoning", "summary": [], "content": [HM]},
                {"role": "assistant", "content": "let me see"},
                CALL,
                OTHER,
                RESULT,
                {**RESULT, "call_id": "c2", "output": [{"type": "input_text", "text": "7"}]},
                user("and?"),
            ],
            [
                ChatMessage("user", "hi"),
                ChatMessage(
                    "assistant",
                    "let me see",
                    tool_calls=(ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "g", "{}")),
                    reasoning="hm",
                ),
                ChatMessage("tool", "42", tool_call_id="c1", name="f"),
                ChatMessage("tool", "7", tool_call_id="c2", name="g"),
                ChatMessage("user", "and?"),
            ],
        ),
        (
            [CALL, RESULT, OTHER],
            [
                ChatMessage("assistant", "", tool_calls=(ToolCall("c1", "f", '{"a": 1}'),)),
                ChatMessage("tool", "42", tool_call_id="c1", name="f"),
                ChatMessage("assistant", "", tool_calls=(ToolCall("c2", "g", "{}"),)),
            ],
        ),
        (
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
            [ChatMessage("assistant", "a"), ChatMessage("assistant", "b")],
        ),
        (
            [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "y"}]},
                {"role": "assistant", "content": "a"},
                {"type": "reasoning", "summary": []},
                {"role": "assistant", "content": "b"},
            ],
            [
                ChatMessage("assistant", "a", reasoning="x\ny"),
                ChatMessage("assistant", "b", reasoning=""),
            ],
        ),
    ],
)
def test_items_become_messages(items: Any, messages: list[ChatMessage]):
    assert messages_of(items) == tuple(messages)


def test_instructions_are_merged_with_the_next_system_message():
    items = [{"role": "system", "content": "short"}, user("hi")]
    assert messages_of(items, instructions="be nice") == (
        ChatMessage("system", "be nice\n\nshort"),
        ChatMessage("user", "hi"),
    )
    assert messages_of([user("hi")], instructions="be nice")[0] == ChatMessage("system", "be nice")


@pytest.mark.parametrize("num_inherited", [0, 2])
def test_an_output_without_its_call_is_refused(num_inherited: int):
    given = [user("a"), user("b"), CALL, {**RESULT, "call_id": "c9"}]
    items = ResponseRequest.model_validate({"input": given}).to_items("key")
    with pytest.raises(InvalidRequest) as refused:
        to_messages(Context.of(items[:num_inherited], items[num_inherited:]))
    assert refused.value.param == f"input[{3 - num_inherited}].call_id"


def test_output_becomes_context():
    log = make_log(
        *f"<think>hm</think>so {call('f', '{}')}",
        end=FinishReason.TOOL_CALLS,
        output_format=REASONING,
        logprobs=True,
    )
    output = write(log, reports_logprobs=True)[-1]["response"]["output"]
    [turn] = to_messages(Context.of(to_context(output), ()))
    assert (turn.content, turn.reasoning) == ("so", "hm")
    assert [(each.name, each.arguments) for each in turn.tool_calls] == [("f", "{}")]
    _, message, _ = to_context(output)
    assert message["type"] == "message"
    assert message["content"] == [to_output_text("so")]
    assert output[1]["content"][0]["logprobs"], "the response itself keeps them"


def test_a_call_that_was_cut_off_is_not_part_of_the_context():
    log = make_log(*call("f", '{"a": 1}')[:-15], end=FinishReason.LENGTH, output_format=TOOLS)
    output = write(log)[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["function_call"]
    assert to_context(output) == ()


def test_a_summary_replaces_earlier_messages():
    items = [
        {"role": "system", "content": "be nice"},
        user("hi"),
        CALL,
        {"type": "compaction", "encrypted_content": encode_summary("They said hi.")},
        user("and?"),
    ]
    assert messages_of(items, instructions="short") == (
        ChatMessage(
            "system",
            "short\n\nbe nice\n\nWhat the conversation was about so far:\nThey said hi.",
        ),
        ChatMessage("user", "and?"),
    )
    with pytest.raises(InvalidRequest, match="no call 'c1'"):
        messages_of([*items, RESULT])
