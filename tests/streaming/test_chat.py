"""What a turn says of itself."""

from __future__ import annotations

from streaming.chat import ANY_TOOL, ChatMessage, ToolCall, ToolMode


def test_a_turn_knows_all_that_a_template_may_write():
    calls = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "sub", "{}"))
    message = ChatMessage("assistant", "well", calls, reasoning="hm")
    assert message.texts == ("assistant", "well", "hm", "add", '{"a": 1}', "sub", "{}")
    assert ChatMessage("tool", "3", tool_call_id="call_1", name="add").texts == ("tool", "3", "add")


def test_any_tool_may_be_called_unless_said_otherwise():
    assert (ANY_TOOL.mode, ANY_TOOL.names) == (ToolMode.AUTO, None)
