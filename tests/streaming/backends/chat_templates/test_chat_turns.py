"""Turns and texts as templates take them; whole prompts are tested in test_chat_template."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from streaming.backends.chat_templates.chat_turns import (
    describe_function,
    describe_tools,
    escape_message,
    load_escaped,
    plain_turns,
    with_instructions,
    with_single_calls,
    with_tool_names,
    write_calls,
    write_result,
)
from streaming.chat.format import HERMES, MISTRAL_LIST
from streaming.chat.messages import ChatMessage, Tool, ToolCall
from streaming.errors import InvalidRequest

CALLS = (ToolCall("call_1", "f", "{}"), ToolCall("call_2", "g", '{"ä": 1}'))
ASK = ChatMessage("user", "go")
CALL_BOTH = ChatMessage("assistant", "I look.", CALLS)
FIRST, SECOND = (
    ChatMessage("tool", f"result {number}", tool_call_id=f"call_{number}") for number in (1, 2)
)


def brackets(text: str) -> str:
    """Mark a text, to see that it was escaped."""
    return f"[{text}]"


# Escaping.


def test_every_text_of_a_message_is_escaped():
    message = ChatMessage(
        "assistant",
        "text",
        (ToolCall("call_1", "f", '{"a": ["b", 1, null]}'),),
        reasoning="thought",
    )
    escaped = escape_message(message, brackets)
    assert escaped == ChatMessage(
        "[assistant]",
        "[text]",
        (ToolCall("[call_1]", "[f]", '{"[a]": ["[b]", 1, null]}'),),
        reasoning="[thought]",
    )
    result = ChatMessage("tool", "3", tool_call_id="call_1", name="f")
    assert escape_message(result, brackets) == ChatMessage(
        "[tool]", "[3]", tool_call_id="[call_1]", name="[f]"
    )


def test_unicode_escapes_in_json_are_decoded_before_they_are_escaped():
    assert load_escaped(r'{"\u003ca": "\u003e"}', brackets) == {"[<a]": "[>]"}


def test_json_nested_too_deeply_is_refused():
    with pytest.raises(ValueError, match="nested too deeply"):
        load_escaped("[" * 100_000 + "]" * 100_000, brackets)


def test_a_tool_becomes_a_function_with_escaped_texts():
    assert describe_function(Tool("f", "Does.", '{"title": "x"}'), brackets) == {
        "name": "[f]",
        "description": "[Does.]",
        "parameters": {"[title]": "[x]"},
    }


def test_a_tool_without_parameters_takes_an_empty_object():
    function = describe_function(Tool("f", "", ""), brackets)
    assert function["parameters"] == {"type": "object", "properties": {}}


def test_parameters_that_are_not_json_name_their_tool():
    with pytest.raises(InvalidRequest, match="the parameters of 'f' are not valid JSON") as caught:
        describe_function(Tool("f", "", "{"), brackets)
    assert caught.value.param == "tools"


# Turns.


def test_results_get_the_names_of_their_tools():
    other = ChatMessage("tool", "3", tool_call_id="call_9")
    named = ChatMessage("tool", "4", tool_call_id="call_1", name="own name")
    assert with_tool_names([ASK, CALL_BOTH, FIRST, SECOND, other, named]) == [
        *(ASK, CALL_BOTH),
        *(replace(FIRST, name="f"), replace(SECOND, name="g")),
        *(other, named),
    ]


def test_calls_of_one_turn_become_turns_with_one_call_each():
    extra = ChatMessage("tool", "result 9", tool_call_id="call_9")
    assert with_single_calls([ASK, CALL_BOTH, SECOND, extra, FIRST, ASK]) == [
        ASK,
        ChatMessage("assistant", "I look.", CALLS[:1]),
        FIRST,
        ChatMessage("assistant", "", CALLS[1:]),
        SECOND,
        extra,
        ASK,
    ]


def test_plain_turns_have_calls_as_text_and_results_in_user_turns():
    messages = [ASK, CALL_BOTH, replace(FIRST, name="f"), SECOND, ChatMessage("user", "And?")]
    assert plain_turns(messages, HERMES) == [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": f"I look.\n{write_calls(CALLS, HERMES)}"},
        {
            "role": "user",
            "content": "Result of f:\nresult 1\nResult of the function:\nresult 2\nAnd?",
        },
    ]


def test_plain_turns_of_the_user_stay_apart_without_results():
    assert plain_turns([ASK, ASK], HERMES) == [{"role": "user", "content": "go"}] * 2


def test_plain_turns_keep_reasoning():
    [turn] = plain_turns([ChatMessage("assistant", "yes", reasoning="hm")], HERMES)
    assert turn == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("roles", "has_system", "expected"),
    [
        (("system", "user"), True, [("system", "0\n\nDo."), ("user", "1")]),
        (("system", "user"), False, [("system", "0\n\nDo."), ("user", "1")]),
        (("user", "assistant"), True, [("system", "Do."), ("user", "0"), ("assistant", "1")]),
        (("user", "assistant"), False, [("user", "Do.\n\n0"), ("assistant", "1")]),
        (("assistant",), False, [("system", "Do."), ("assistant", "0")]),
    ],
)
def test_instructions_go_into_the_first_turn(
    roles: tuple[str, ...], has_system: bool, expected: list[tuple[str, str]]
):
    turns = [{"role": role, "content": str(index)} for index, role in enumerate(roles)]
    found = with_instructions(turns, "Do.", has_system=has_system)
    assert [(turn["role"], turn["content"]) for turn in found] == expected


# Texts for models whose template does not render tools.


def test_calls_are_written_in_the_syntax():
    assert write_calls(CALLS[:1], HERMES) == (
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    )
    assert write_calls(CALLS, MISTRAL_LIST) == (
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"ä": 1}}]'
    )


def test_each_tool_has_a_line_and_the_example_is_in_the_syntax():
    functions = [{"name": "f", "description": "sägt\nes"}, {"name": "g"}]
    lines = describe_tools(functions, MISTRAL_LIST).splitlines()
    assert [json.loads(line) for line in lines[2:4]] == functions
    assert lines[2] == '{"name": "f", "description": "sägt\\nes"}'
    assert '[TOOL_CALLS] [{"name": "NAME", "arguments": {"ARGUMENT": VALUE}}]' in lines


def test_a_result_names_its_tool():
    assert write_result("3", name="add") == "Result of add:\n3"
    assert write_result("3", name=None) == "Result of the function:\n3"
