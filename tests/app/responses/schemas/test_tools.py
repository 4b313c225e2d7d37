from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter
from pydantic_core import PydanticCustomError

from app.responses.schemas.tools import (
    AllowedTools,
    FunctionTool,
    ToolChoiceField,
    check_supported_tools,
    echo_tool_choice,
    to_tool_choice,
    to_tools,
)
from streaming import Tool, ToolChoice, ToolMode

CHOICE: TypeAdapter[ToolChoiceField] = TypeAdapter(ToolChoiceField)
FUNCTION = {"type": "function", "name": "f"}


@pytest.mark.parametrize(
    ("field", "choice"),
    [
        ("auto", ToolChoice()),
        ("none", ToolChoice(ToolMode.NONE)),
        (FUNCTION, ToolChoice(ToolMode.REQUIRED, frozenset({"f"}))),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [FUNCTION]},
            ToolChoice(ToolMode.REQUIRED, frozenset({"f"})),
        ),
    ],
)
def test_a_choice_is_converted_and_repeated(field: Any, choice: ToolChoice):
    parsed = CHOICE.validate_python(field)
    assert to_tool_choice(parsed) == choice
    assert echo_tool_choice(parsed) == field


def test_allowed_tools_are_optional_to_call_by_default():
    parsed = CHOICE.validate_python({"type": "allowed_tools", "tools": [FUNCTION]})
    assert isinstance(parsed, AllowedTools)
    assert to_tool_choice(parsed) == ToolChoice(ToolMode.AUTO, frozenset({"f"}))


def test_a_function_without_parameters_takes_an_empty_object():
    tools = [
        FunctionTool.model_validate(FUNCTION),
        FunctionTool.model_validate({**FUNCTION, "name": "g", "parameters": {"type": "é"}}),
    ]
    assert to_tools(tools) == (
        Tool("f", "", '{"type": "object", "properties": {}}'),
        Tool("g", "", '{"type": "é"}'),
    )


def test_unknown_keys_of_a_function_are_not_repeated():
    tool = FunctionTool.model_validate({**FUNCTION, "strict": True, "x": 1})
    assert tool.echo() == {**FUNCTION, "description": None, "parameters": None, "strict": True}


@pytest.mark.parametrize("kind", ["web_search", "mcp", "\ud800", "x" * 5000, "{param}{message}"])
def test_a_hosted_tool_is_refused_with_its_location(kind: str):
    with pytest.raises(PydanticCustomError) as refused:
        check_supported_tools([FUNCTION, {"type": kind}])
    assert refused.value.type == "unsupported_content"
    assert refused.value.context is not None
    assert refused.value.context["param"] == "tools[1]"
    message = refused.value.message()
    assert message.startswith("tools[1]: tools of the type ")
    assert len(message) < 150
    assert kind[:16].encode(errors="replace").decode() in message


@pytest.mark.parametrize("value", [None, "tools", [], [FUNCTION], [5, {"type": None}, {}]])
def test_other_values_are_left_to_validation(value: Any):
    check_supported_tools(value)
