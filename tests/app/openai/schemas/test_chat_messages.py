from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.openai.schemas.chat_messages import Message, TextPart, join_content, to_chat_messages
from app.schemas.validation import to_error_info
from streaming import ChatMessage, ToolCall
from streaming.errors import InvalidRequest

MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


def messages_of(*fields: dict[str, Any]) -> tuple[ChatMessage, ...]:
    return to_chat_messages(MESSAGES.validate_python(list(fields)), param="messages")


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


def call(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"role": "system", "content": "a"}, ChatMessage("system", "a")),
        ({"role": "developer", "content": "a"}, ChatMessage("system", "a")),
        ({"role": "user", "content": "a", "name": "Ann"}, ChatMessage("user", "a", name="Ann")),
        (assistant(content="a", reasoning="hm"), ChatMessage("assistant", "a", reasoning="hm")),
        (
            assistant(content="a", reasoning_content="hm"),
            ChatMessage("assistant", "a", reasoning="hm"),
        ),
        (assistant(content=None, refusal="no"), ChatMessage("assistant", "no")),
        (assistant(content="yes", refusal="no"), ChatMessage("assistant", "yes")),
        (
            assistant(tool_calls=[call('{"a": 1}')]),
            ChatMessage("assistant", "", tool_calls=(ToolCall("call_1", "f", '{"a": 1}'),)),
        ),
        (
            assistant(tool_calls=[call(" ")]),
            ChatMessage("assistant", "", tool_calls=(ToolCall("call_1", "f", "{}"),)),
        ),
        (
            {"role": "tool", "tool_call_id": "call_1", "content": "a"},
            ChatMessage("tool", "a", tool_call_id="call_1"),
        ),
    ],
)
def test_each_role_has_its_message(fields: dict[str, Any], expected: ChatMessage):
    assert messages_of(fields) == (expected,)


def test_parts_are_joined_with_line_breaks():
    parts = [TextPart(type="text", text=text) for text in ("one", "", "two")]
    assert join_content(parts) == "one\n\ntwo"
    assert join_content([]) == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (assistant(), "messages[1].content: is required without tool_calls or a refusal"),
        (
            assistant(content="a", reasoning="b", reasoning_content="b"),
            "messages[1].reasoning: must be omitted if reasoning_content is given",
        ),
        *(
            (
                assistant(tool_calls=[call("{}"), call(arguments)]),
                "messages[1].tool_calls[1].function.arguments: must be a JSON object, encoded as "
                "a string",
            )
            for arguments in ("[1]", "{", "[" * 99_999)
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_message_without_meaning_is_refused_by_path(fields: dict[str, Any], message: str):
    with pytest.raises(InvalidRequest) as caught:
        messages_of({"role": "user", "content": "a"}, fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"role": "bot", "content": "a"},
            "[0]: must be an object whose role is one of system, developer, user, assistant, tool",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
            "[0].content[0]: must be an object whose type is text: this server reads no images, "
            "audio or files",
        ),
    ],
)
def test_unknown_roles_and_parts_are_answered_with_the_known_ones(
    fields: dict[str, Any], message: str
):
    with pytest.raises(ValidationError) as caught:
        messages_of(fields)
    assert to_error_info(caught.value.errors()).message == message
