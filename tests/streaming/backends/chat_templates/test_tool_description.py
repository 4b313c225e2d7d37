"""What a model without a syntax of its own is told; whole prompts are in test_chat_template."""

from __future__ import annotations

from streaming.backends.chat_templates.tool_description import (
    describe_tools,
    write_calls,
    write_result,
)
from streaming.chat.format import HERMES, MISTRAL_LIST
from streaming.chat.messages import ToolCall

CALLS = [ToolCall("call_1", "f", "{}"), ToolCall("call_2", "g", '{"ä": 1}')]


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
    assert lines[2:4] == ['{"name": "f", "description": "sägt\\nes"}', '{"name": "g"}']
    assert '[TOOL_CALLS] [{"name": "NAME", "arguments": {"ARGUMENT": VALUE}}]' in lines


def test_a_result_names_its_tool():
    assert write_result("3", name="add") == "Result of add:\n3"
    assert write_result("3", name=None) == "Result of the function:\n3"
