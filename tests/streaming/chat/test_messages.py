"""What a turn says of itself, and which tools can be offered."""

from __future__ import annotations

import pytest

from streaming.chat.messages import (
    ANY_TOOL,
    MAX_TOOLS,
    MAX_TOOLS_CHARS,
    ChatMessage,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
    check_tools,
)
from streaming.errors import InvalidRequest


def test_a_turn_knows_all_that_a_template_may_write():
    calls = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "sub", "{}"))
    message = ChatMessage("assistant", "well", calls, reasoning="hm")
    assert message.texts == ("assistant", "well", "hm", "add", '{"a": 1}', "sub", "{}")
    assert ChatMessage("tool", "3", tool_call_id="call_1", name="add").texts == ("tool", "3", "add")


def test_any_tool_may_be_called_unless_said_otherwise():
    assert (ANY_TOOL.mode, ANY_TOOL.names) == (ToolMode.AUTO, None)


# What may be offered.

F, G = Tool("f", "", "{}"), Tool("g", "", "{}")
REQUIRED = ToolChoice(ToolMode.REQUIRED)


def only(*names: str) -> ToolChoice:
    return ToolChoice(names=frozenset(names))


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ((), ANY_TOOL),
        ((F, G), REQUIRED),
        ((F, G), only("g")),
        ((Tool("Aa0_-" + "x" * 59, "", "{}"),), ANY_TOOL),
        (tuple(Tool(f"f{number}", "", "{}") for number in range(MAX_TOOLS)), ANY_TOOL),
        ((Tool("f", "", "x" * (MAX_TOOLS_CHARS - 1)),), ANY_TOOL),
    ],
    ids=range(6),
)
def test_tools_within_the_limits_are_taken(tools: tuple[Tool, ...], choice: ToolChoice):
    check_tools(tools, choice)


@pytest.mark.parametrize(
    ("tools", "choice", "expected"),
    [
        ((F, F), ANY_TOOL, "tools: two are named 'f'"),
        ((Tool("", "", "{}"),), ANY_TOOL, "tools: '' is no name"),
        ((Tool("f\n", "", "{}"),), ANY_TOOL, r"tools: 'f\\n' is no name"),
        ((Tool("ä", "", "{}"),), ANY_TOOL, "tools: 'ä' is no name"),
        (
            (Tool("x" * 65, "", "{}"),),
            ANY_TOOL,
            "tools: 'x+' is no name: 1 to 64 of a-z, A-Z, 0-9, _ and -",
        ),
        (
            tuple(Tool(f"f{number}", "", "{}") for number in range(MAX_TOOLS + 1)),
            ANY_TOOL,
            "tools: there are 129; at most 128 are taken",
        ),
        (
            (Tool("f", "", "x" * MAX_TOOLS_CHARS),),
            ANY_TOOL,
            "tools: they have 262145 characters; at most 262144 are taken",
        ),
        ((), REQUIRED, "tool_choice: there are no tools to call"),
        ((F,), only("g"), "tool_choice: there is no tool 'g'"),
        ((F,), only(), "tool_choice: allows no tool"),
    ],
    ids=range(10),
)
def test_what_cannot_be_offered_is_refused_by_name(
    tools: tuple[Tool, ...], choice: ToolChoice, expected: str
):
    with pytest.raises(InvalidRequest, match=expected) as caught:
        check_tools(tools, choice)
    assert caught.value.param == expected.partition(":")[0]
