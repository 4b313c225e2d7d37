"""Texts and fields of prompts, and the ranges of priority and timeout."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from streaming.chat.messages import ChatMessage, Tool, ToolCall
from streaming.errors import InvalidRequest
from streaming.request import (
    ANYONE,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from streaming.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("prompt", "param", "texts"),
    [
        (TextPrompt("hi"), "prompt", ("hi",)),
        (TokenPrompt((1, 2)), "prompt", ()),
        (
            ChatPrompt((ChatMessage("system", "be kind"), ChatMessage("user", "hi"))),
            "messages",
            ("system", "be kind", "user", "hi"),
        ),
        (
            ChatPrompt(
                (ChatMessage("assistant", "", (ToolCall("call_1", "add", "{}"),)),),
                tools=(Tool("add", "Adds.", '{"type": "object"}'),),
                template_kwargs='{"mood": "glad"}',
            ),
            "messages",
            (
                *("assistant", "", "add", "{}"),
                *("add", "Adds.", '{"type": "object"}', '{"mood": "glad"}'),
            ),
        ),
    ],
)
def test_a_prompt_names_its_field_and_all_its_texts(
    prompt: Prompt, param: str, texts: tuple[str, ...]
):
    assert (prompt.param, prompt.texts) == (param, texts)


def test_equal_prompts_have_the_same_hash():
    """Admission tokenises a repeated prompt once."""
    prompts = [
        *(TextPrompt("hi") for _ in range(2)),
        *(TokenPrompt((1,)) for _ in range(2)),
        *(ChatPrompt((ChatMessage("user", "hi"),)) for _ in range(2)),
    ]
    assert len(set(prompts)) == 3


def test_defaults_of_a_request():
    request = GenerationRequest(prompt=TextPrompt("hi"))
    assert (request.caller, request.model, request.params) == (ANYONE, None, SamplingParams())
    assert dict(request.metadata) == {}


MAX_PRIORITY = GenerationRequest.max_priority


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": MAX_PRIORITY},
        {"priority": -MAX_PRIORITY},
        {"timeout_s": 0.001},
        {"timeout_s": inf},
    ],
)
def test_priority_and_timeout_in_range_are_accepted(fields: dict[str, Any]):
    request = GenerationRequest(prompt=TextPrompt("hi"), **fields)
    assert {name: getattr(request, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("priority", MAX_PRIORITY + 1),
        ("priority", -MAX_PRIORITY - 1),
        ("timeout_s", 0.0),
        ("timeout_s", -1.0),
        ("timeout_s", nan),
    ],
)
def test_priority_and_timeout_out_of_range_are_rejected_with_their_field(param: str, value: float):
    fields: dict[str, Any] = {param: value}
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest(prompt=TextPrompt("hi"), **fields)
    assert caught.value.param == param
