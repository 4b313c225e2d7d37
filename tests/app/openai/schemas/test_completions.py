from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.openai.schemas.completions import CompletionRequest
from app.schemas.validation import to_error_info
from streaming import TextPrompt, TokenPrompt
from streaming.errors import InvalidRequest


def request_of(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "a", **fields})


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [TextPrompt("ab")]),
        (["ab", "c"], [TextPrompt("ab"), TextPrompt("c")]),
        ([1, 2], [TokenPrompt((1, 2))]),
        ([[1, 2], [3]], [TokenPrompt((1, 2)), TokenPrompt((3,))]),
    ],
)
def test_each_form_of_prompt(prompt: Any, prompts: list[Any]):
    request = request_of(prompt=prompt)
    assert request.prompts == prompts
    assert request.num_prompts == len(prompts)


@pytest.mark.parametrize("prompt", [None, 5, {}, ["a", 1], [1, True], [[1], "a"], [[1.5]]])
def test_another_form_is_answered_with_the_known_ones(prompt: Any):
    with pytest.raises(ValidationError) as caught:
        request_of(prompt=prompt)
    assert to_error_info(caught.value.errors()).message == (
        "prompt: must be a string, an array of strings, an array of token ids, or an array of "
        "arrays of token ids"
    )


def test_the_default_is_16_tokens_for_each_prompt():
    requests = request_of(prompt=["a", "b"], max_tokens=None).to_requests(
        caller="me", max_choices=2
    )
    assert [request.params.max_tokens for request in requests] == [16, 16]
    assert [request.prompt for request in requests] == [TextPrompt("a"), TextPrompt("b")]


@pytest.mark.parametrize(
    ("fields", "logprobs", "prompt_logprobs"),
    [
        ({}, None, None),
        ({"logprobs": 2}, 2, None),
        ({"echo": True}, None, None),
        ({"echo": True, "logprobs": 0}, 0, 0),
    ],
)
def test_the_prompt_is_scored_only_if_it_is_echoed_with_logprobs(
    fields: dict[str, Any], logprobs: int | None, prompt_logprobs: int | None
):
    [request] = request_of(**fields).to_requests(caller="me", max_choices=1)
    assert (request.params.logprobs, request.params.prompt_logprobs) == (logprobs, prompt_logprobs)


def test_no_tokens_are_allowed_only_with_echo():
    request = request_of(echo=True, max_tokens=0)
    [only_prompt] = request.to_requests(caller="me", max_choices=1)
    assert request.is_prompt_only
    assert only_prompt.params.max_tokens == 1
    with pytest.raises(InvalidRequest) as caught:
        request_of(max_tokens=0).to_requests(caller="me", max_choices=1)
    assert caught.value.param == "max_tokens"


def test_best_of_must_equal_n():
    request_of(n=2, best_of=2).to_requests(caller="me", max_choices=2)
    with pytest.raises(InvalidRequest) as caught:
        request_of(n=2, best_of=3).to_requests(caller="me", max_choices=2)
    assert str(caught.value) == "best_of: must equal n, which is 2 (got 3)"
