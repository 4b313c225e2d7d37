from __future__ import annotations

import json
from functools import reduce
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.openai.schemas.chat import ChatRequest
from app.openai.schemas.chat_tools import ToolChoiceField, ToolFields, to_tool_choice
from app.schemas.validation import to_error_info
from streaming import ChatPrompt, Tool, ToolChoice, ToolMode
from streaming.errors import InvalidRequest
from tests.app.chat_answers import ask, tool

CHOICE: TypeAdapter[Any] = TypeAdapter(ToolChoiceField | None)


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [tool(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_a_tool_has_its_schema_as_json_in_the_order_of_its_fields():
    parameters = {"type": "object", "properties": {"b": {"const": "é"}, "a": {}}}
    fields = ToolFields.model_validate(tool("f", description="Does.", parameters=parameters))
    made = fields.to_tool(param="tools[0]")
    assert (made.name, made.description) == ("f", "Does.")
    assert made.parameters == json.dumps(parameters, ensure_ascii=False)


def test_a_tool_has_no_arguments_by_default():
    made = ToolFields.model_validate(tool("f")).to_tool(param="tools[0]")
    assert made == Tool("f", "", '{"type": "object", "properties": {}}')


def test_a_schema_that_is_nested_too_deeply_is_refused_by_path():
    deep: dict[str, Any] = reduce(lambda inner, _: {"items": inner}, range(200_000), {})
    fields = ToolFields.model_validate(tool("f", parameters=deep))
    with pytest.raises(InvalidRequest) as caught:
        fields.to_tool(param="tools[3]")
    assert str(caught.value) == "tools[3].function.parameters: is nested too deeply"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice(ToolMode.AUTO)),
        ("none", ToolChoice(ToolMode.NONE)),
        ("required", ToolChoice(ToolMode.REQUIRED)),
        (tool("g"), ToolChoice(ToolMode.REQUIRED, frozenset({"g"}))),
        (allowed("required", "g", "h"), ToolChoice(ToolMode.REQUIRED, frozenset({"g", "h"}))),
        (allowed("auto", "f"), ToolChoice(ToolMode.AUTO, frozenset({"f"}))),
    ],
)
def test_each_form_of_tool_choice(choice: Any, expected: ToolChoice):
    assert to_tool_choice(CHOICE.validate_python(choice)) == expected


@pytest.mark.parametrize("choice", ["any", 1, [], {}, {"type": "custom"}])
def test_an_unknown_form_is_answered_with_the_known_ones(choice: Any):
    with pytest.raises(ValidationError) as caught:
        CHOICE.validate_python(choice)
    assert to_error_info(caught.value.errors()).message == (
        "must be none, auto, required, or an object whose type is function or allowed_tools"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice: needs tools to choose from"),
        (
            {"tools": [tool("f")], "tool_choice": allowed("auto", "f", "h", "g")},
            "tool_choice: must name one of the tools (got 'g')",
        ),
    ],
)
def test_a_choice_must_be_one_of_the_tools(fields: dict[str, Any], message: str):
    body = ChatRequest.model_validate({"messages": ask(), **fields})
    with pytest.raises(InvalidRequest) as caught:
        body.to_requests(caller="me", max_choices=1)
    assert str(caught.value) == message


def test_tools_and_choice_reach_the_prompt():
    body = ChatRequest.model_validate(
        {
            "messages": ask(),
            "tools": [tool("f"), tool("g")],
            "tool_choice": tool("g"),
            "parallel_tool_calls": False,
        }
    )
    [request] = body.to_requests(caller="me", max_choices=1)
    assert isinstance(request.prompt, ChatPrompt)
    assert [each.name for each in request.prompt.tools] == ["f", "g"]
    assert request.prompt.tool_choice == ToolChoice(ToolMode.REQUIRED, frozenset({"g"}))
    assert request.prompt.parallel_tool_calls is False
