from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.schemas.sampling import SamplingFields
from app.schemas.validation import to_error_info
from streaming import Grammar, GrammarKind, SamplingParams, TextPrompt
from streaming.errors import InvalidRequest


def params_of(**fields: Any) -> SamplingParams:
    return SamplingFields.model_validate(fields).to_sampling_params()


def test_absent_and_null_are_the_defaults_of_the_engine():
    assert params_of() == SamplingParams()
    assert params_of(**dict.fromkeys(SamplingFields.model_fields)) == SamplingParams()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"temperature": 0, "top_p": 0.5, "top_k": 3},
            {"temperature": 0, "top_p": 0.5, "top_k": 3},
        ),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop_token_ids": [2, 1, 2]}, {"stop_token_ids": frozenset({1, 2})}),
        ({"logit_bias": {"5": -1, "7": 0.5}}, {"logit_bias": {5: -1, 7: 0.5}}),
        ({"response_format": {"type": "text"}}, {"grammar": None}),
        (
            {"response_format": {"type": "regex", "pattern": "a"}},
            {"grammar": Grammar(GrammarKind.REGEX, "a")},
        ),
    ],
)
def test_fields_become_parameters(fields: dict[str, Any], expected: dict[str, Any]):
    assert params_of(**fields) == SamplingParams(**expected)


def test_the_route_gives_the_default_length_and_the_logprobs():
    def convert(fields: SamplingFields) -> SamplingParams:
        return fields.to_sampling_params(default_max_tokens=16, logprobs=2, prompt_logprobs=1)

    assert convert(SamplingFields()) == SamplingParams(max_tokens=16, logprobs=2, prompt_logprobs=1)
    assert convert(SamplingFields(max_tokens=3)).max_tokens == 3


@pytest.mark.parametrize("biases", [[1], {"5": "1"}, {"5": True}, {"5": None}])
def test_a_bias_that_is_not_a_number_is_refused(biases: Any):
    with pytest.raises(ValidationError) as caught:
        SamplingFields.model_validate({"logit_bias": biases})
    assert to_error_info(caught.value.errors()).message == (
        "logit_bias: must be an object that maps token ids to numbers"
    )


def test_a_bias_of_something_other_than_a_token_id_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        params_of(logit_bias={"hello": 1})
    assert str(caught.value) == 'logit_bias: must have token ids as its keys, such as "42"'


def test_urgency_belongs_to_the_request_and_not_to_its_parameters():
    fields = SamplingFields(priority=-3, timeout_s=2.5)
    params = fields.to_sampling_params()
    request = fields.to_generation_request(
        TextPrompt("a"), params, caller="me", model=None, metadata={"a": "b"}
    )
    assert params == SamplingParams()
    assert (request.priority, request.timeout_s) == (-3, 2.5)
    assert (request.caller, request.metadata) == ("me", {"a": "b"})


def test_null_is_the_default_priority():
    request = SamplingFields(priority=None).to_generation_request(
        TextPrompt("a"), SamplingParams(), caller="me", model=None, metadata={}
    )
    assert (request.priority, request.timeout_s) == (0, None)
