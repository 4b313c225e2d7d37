"""Texts of a message, and the checks of tools and tool choices."""

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


def test_texts_are_all_that_a_template_may_render():
    calls = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "sub", "{}"))
    message = ChatMessage("assistant", "well", calls, reasoning="hm")
    assert message.texts == ("assistant", "well", "hm", "add", '{"a": 1}', "sub", "{}")
    assert ChatMessage("tool", "3", tool_call_id="call_1", name="add").texts == ("tool", "3", "add")


def test_by_default_any_tool_may_be_called():
    assert (ANY_TOOL.mode, ANY_TOOL.names) == (ToolMode.AUTO, None)


# check_tools

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
def test_tools_within_the_limits_are_accepted(tools: tuple[Tool, ...], choice: ToolChoice):
    check_tools(tools, choice)


@pytest.mark.parametrize(
    ("tools", "choice", "expected"),
    [
        ((F, F), ANY_TOOL, "tools: more than one tool is named 'f'"),
        ((Tool("", "", "{}"),), ANY_TOOL, "tools: '' is not a valid tool name"),
        ((Tool("f\n", "", "{}"),), ANY_TOOL, r"tools: 'f\\n' is not a valid tool name"),
        ((Tool("ä", "", "{}"),), ANY_TOOL, "tools: 'ä' is not a valid tool name"),
        (
            (Tool("x" * 65, "", "{}"),),
            ANY_TOOL,
            "tools: 'x+' is not a valid tool name; "
            "use 1 to 64 characters of a-z, A-Z, 0-9, _ and -",
        ),
        (
            tuple(Tool(f"f{number}", "", "{}") for number in range(MAX_TOOLS + 1)),
            ANY_TOOL,
            r"tools: must have at most 128 tools \(got 129\)",
        ),
        (
            (Tool("f", "", "x" * MAX_TOOLS_CHARS),),
            ANY_TOOL,
            r"tools: .* must have at most 262144 characters together \(got 262145\)",
        ),
        ((), REQUIRED, "tool_choice: requires a tool call, but tools is empty"),
        ((F,), only("g"), "tool_choice: names the tool 'g', which is not in tools"),
        ((F,), only(), "tool_choice: must allow at least one tool"),
    ],
    ids=range(10),
)
def test_invalid_tools_are_rejected_with_their_field(
    tools: tuple[Tool, ...], choice: ToolChoice, expected: str
):
    with pytest.raises(InvalidRequest, match=expected) as caught:
        check_tools(tools, choice)
    assert caught.value.param == expected.partition(":")[0]
