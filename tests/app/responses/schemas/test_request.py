from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from pydantic import ValidationError

from app.responses.schemas.request import ResponseRequest
from app.schemas.validation import to_error_info
from streaming import ChatPrompt, GrammarKind, Tool, ToolChoice, ToolMode
from streaming.errors import InvalidRequest
from tests.app.response_events import check_response

TOOL = {"type": "function", "name": "f"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
PARAMETERS = '{"type": "object", "properties": {"a": {"type": "integer"}}}'


def parse(**fields: Any) -> ResponseRequest:
    return ResponseRequest.model_validate({"input": "hi", **fields})


def prompt_of(body: ResponseRequest) -> ChatPrompt:
    prompt = body.to_request((), caller="me").prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def refusal(**fields: Any) -> tuple[str, str | None]:
    """Return the code and the field of the refusal."""
    with pytest.raises(ValidationError) as refused:
        parse(**fields)
    info = to_error_info(refused.value.errors())
    return info.code, info.param


# Refusals.


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[0].content[0]"),
        (
            {
                "role": "user",
                "content": [{"type": "input_text", "text": ""}, {"type": "input_file"}],
            },
            "input[0].content[1]",
        ),
        ({"role": "user", "content": [{"type": "x" * 5000}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "\ud800"}]}, "input[0].content[0]"),
        (
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_image", "image_url": "data:"}],
            },
            "input[0].output[0]",
        ),
        ({"type": "web_search_call", "id": "ws_1"}, "input[0]"),
        ({"type": "computer_call", "id": "cu_1"}, "input[0]"),
    ],
)
def test_unsupported_content_is_refused_with_its_location(item: dict[str, Any], param: str):
    assert refusal(input=[item]) == ("unsupported_content", param)


@pytest.mark.parametrize("kind", ["web_search", "custom", "x"])
def test_hosted_tools_are_refused_with_their_location(kind: str):
    assert refusal(tools=[TOOL, {"type": kind}]) == ("unsupported_content", "tools[1]")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": []}, "context_management"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"input": 5}, "input"),
        ({"input": ["hi"]}, "input[0]"),
        ({"input": [{"content": "hi"}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": "hi"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, None),
        (
            {"input": [{"type": "function_call", "call_id": "", "name": "f", "arguments": ""}]},
            "input[0].call_id",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[]"}]},
            "input[0].arguments",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]},
            "input[0].arguments",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "?", "arguments": "{}"}]},
            "input[0].name",
        ),
        ({"tools": [{"type": "function", "name": ""}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": "{}"}]}, None),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, None),
        ({"text": {"format": {"type": "regex", "pattern": "a"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, None),
        ({"text": {"fromat": None}}, "text.fromat"),
        ({"truncation": "middle"}, "truncation"),
        ({"store": "yes"}, "store"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"include": ["everything"]}, "include[0]"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"previous_response_id": "x" * 257}, "previous_response_id"),
    ],
)
def test_an_invalid_field_is_refused_with_its_name(fields: dict[str, Any], param: str | None):
    code, found = refusal(**fields)
    assert code == "invalid_request"
    if param is not None:
        assert found == param


def test_null_is_the_default():
    names = ResponseRequest.model_fields
    nulls = ResponseRequest.model_validate(dict.fromkeys(names))
    assert nulls.echo() == ResponseRequest().echo()
    for body in (nulls, ResponseRequest()):
        body.check()
        assert (body.is_stored, body.generates, body.includes_logprobs) == (True, True, False)


def test_unknown_fields_are_ignored():
    assert parse(client_metadata={"a": 1}, stream_options={"x": 1}, reasoning={"context": "auto"})


def test_every_field_is_described():
    schema = ResponseRequest.model_json_schema()
    assert all("description" in field for field in schema["properties"].values())


# What is stored and shown.


def test_items_without_ids_get_them():
    body = parse(
        input=[
            {"role": "user", "content": "hi", "id": "mine"},
            {"role": "assistant", "content": "ho", "phase": "commentary"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": " "},
            {"type": "function_call_output", "call_id": "c", "output": "42"},
            {"type": "reasoning", "summary": [], "encrypted_content": "xyz"},
        ]
    )
    assert body.to_items("k") == (
        {
            "id": "mine",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_text", "text": "hi"}],
        },
        {
            "id": "msg_k_i1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "ho", "annotations": [], "logprobs": []}],
            "phase": "commentary",
        },
        {
            "id": "fc_k_i2",
            "type": "function_call",
            "call_id": "c",
            "name": "f",
            "arguments": "{}",
            "status": "completed",
        },
        {
            "id": "fco_k_i3",
            "type": "function_call_output",
            "call_id": "c",
            "output": "42",
            "status": "completed",
        },
        {"id": "rs_k_i4", "type": "reasoning", "summary": [], "content": []},
    )


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, {"temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "store": True}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"metadata": {"a": "b"}, "store": False}, {"metadata": {"a": "b"}, "store": False}),
        ({"instructions": "be nice"}, {"instructions": "be nice"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
            {
                "tools": [{**TOOL, "description": None, "parameters": None, "strict": None}],
                "tool_choice": {"type": "function", "name": "f"},
            },
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [TOOL]}},
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [TOOL]}},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "n",
                        "description": None,
                        "schema": SCHEMA,
                        "strict": True,
                    }
                }
            },
        ),
        (
            {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
            {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
        ),
        ({"reasoning": {}}, {"reasoning": {"effort": None, "summary": None}}),
        ({"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "low", "summary": None}}),
        ({"service_tier": "flex", "user": "me"}, {"service_tier": "default"}),
        ({"max_output_tokens": 5, "max_tool_calls": 2}, {"max_output_tokens": 5}),
        ({"truncation": "auto", "top_logprobs": 3}, {"truncation": "auto", "top_logprobs": 3}),
        ({"prompt_cache_key": "k"}, {"prompt_cache_key": "k", "safety_identifier": None}),
    ],
)
def test_a_response_repeats_its_request(fields: dict[str, Any], shown: dict[str, Any]):
    echo = parse(**fields).echo()
    assert {name: echo[name] for name in shown} == shown
    check_response(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "completed_at": None,
            "status": "in_progress",
            "incomplete_details": None,
            "model": "m",
            "output": [],
            "error": None,
            "usage": None,
            **echo,
        }
    )


# The engine's request.


@pytest.mark.parametrize(
    ("field", "choice"),
    [
        (None, ToolChoice()),
        ("none", ToolChoice(ToolMode.NONE)),
        ("required", ToolChoice(ToolMode.REQUIRED)),
        ({"type": "function", "name": "f"}, ToolChoice(ToolMode.REQUIRED, frozenset({"f"}))),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [TOOL]},
            ToolChoice(ToolMode.REQUIRED, frozenset({"f"})),
        ),
    ],
)
def test_tools_are_passed_to_the_engine(field: Any, choice: ToolChoice):
    tools = [TOOL, {**TOOL, "name": "g", "description": "d", "parameters": SCHEMA}]
    prompt = prompt_of(parse(tools=tools, tool_choice=field, parallel_tool_calls=False))
    assert prompt.tools == (
        Tool("f", "", '{"type": "object", "properties": {}}'),
        Tool("g", "d", PARAMETERS),
    )
    assert (prompt.tool_choice, prompt.parallel_tool_calls) == (choice, False)


@pytest.mark.parametrize(
    ("reasoning", "template_kwargs"),
    [
        (None, ""),
        ({"summary": "auto"}, ""),
        ({"effort": "low"}, '{"reasoning_effort": "low"}'),
        ({"effort": "none"}, '{"reasoning_effort": "none", "enable_thinking": false}'),
    ],
)
def test_effort_is_passed_to_the_chat_template(reasoning: Any, template_kwargs: str):
    assert prompt_of(parse(reasoning=reasoning)).template_kwargs == template_kwargs


def test_sampling_fields_are_passed_to_the_engine():
    body = parse(
        temperature=0.5,
        top_k=3,
        seed=7,
        stop="x",
        max_output_tokens=9,
        presence_penalty=1,
        priority=2,
        timeout_s=5,
        text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    )
    request = body.to_request((), caller="me")
    params = request.params
    assert (params.temperature, params.top_k, params.seed, params.stop) == (0.5, 3, 7, ("x",))
    assert (params.max_tokens, params.presence_penalty, params.logprobs) == (9, 1, None)
    assert params.grammar is not None
    assert (params.grammar.kind, params.grammar.source) == (GrammarKind.JSON_SCHEMA, PARAMETERS)
    assert (request.priority, request.timeout_s, request.caller) == (2, 5, "me")


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({}, None),
        ({"top_logprobs": 3}, None),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
        ({"include": ["reasoning.encrypted_content"], "top_logprobs": 3}, None),
    ],
)
def test_log_probabilities_are_requested_by_include(fields: dict[str, Any], logprobs: int | None):
    assert parse(**fields).to_request((), caller="me").params.logprobs == logprobs


@pytest.mark.parametrize(
    ("fields", "generates"),
    [
        ({}, True),
        ({"generate": False}, False),
        ({"prompt_cache_options": {"prewarm": True}}, False),
        ({"prompt_cache_options": {"ttl": "30m"}}, True),
    ],
)
def test_a_warm_up_is_requested_in_two_ways(fields: dict[str, Any], generates: bool):
    assert parse(**fields).generates is generates


@pytest.mark.parametrize(
    ("field", "param"), [("tools", "tools[0].parameters"), ("text", "text.format")]
)
def test_a_schema_that_is_nested_too_deeply_is_refused(field: str, param: str):
    deep: dict[str, Any] = reduce(lambda inner, _: {"items": inner}, range(200_000), {})
    fields: dict[str, Any] = {
        "tools": [{**TOOL, "parameters": deep}],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": deep}},
    }
    body = parse(**{field: fields[field]})
    with pytest.raises(InvalidRequest) as refused:
        body.to_request((), caller="me")
    assert refused.value.param == param
