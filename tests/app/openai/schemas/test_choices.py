from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.openai.schemas.choices import ChoiceFields
from streaming import SamplingParams, TextPrompt
from streaming.errors import InvalidRequest


def fields_of(**fields: Any) -> ChoiceFields:
    return ChoiceFields.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "num_prompts", "message"),
    [
        ({"n": 0}, 1, "n: must be at least 1 (got 0)"),
        ({"stream_options": {}}, 1, "stream_options: needs stream to be true"),
        (
            {"n": 3},
            3,
            "n: must ask for at most 8 choices in total (got 3 prompts with n = 3)",
        ),
        ({}, 9, "prompt: must ask for at most 8 choices in total (got 9 prompts with n = 1)"),
    ],
)
def test_a_wrong_number_of_choices_is_refused(
    fields: dict[str, Any], num_prompts: int, message: str
):
    with pytest.raises(InvalidRequest) as caught:
        fields_of(**fields).check_choices(num_prompts=num_prompts, max_choices=8)
    assert str(caught.value) == message


def test_the_most_choices_are_accepted():
    fields_of(n=4, stream=True, stream_options={}).check_choices(num_prompts=2, max_choices=8)


def test_choices_are_in_the_order_of_the_prompts_with_seeds_of_their_own():
    prompts = [TextPrompt("a"), TextPrompt("b")]
    requests = fields_of(n=2, user="me", priority=3).to_choices(
        prompts, SamplingParams(seed=7), caller="c", metadata={"page": "1"}
    )
    assert [(request.prompt, request.params.seed) for request in requests] == [
        *[(prompts[0], 7), (prompts[0], 8)],
        *[(prompts[1], 7), (prompts[1], 8)],
    ]
    assert {(request.caller, request.priority) for request in requests} == {("c", 3)}
    assert [dict(request.metadata) for request in requests] == [{"user": "me", "page": "1"}] * 4


@pytest.mark.parametrize("n", [None, 1])
def test_null_is_the_default(n: int | None):
    fields = fields_of(n=n, stream_options=None)
    assert (fields.num_choices_per_prompt, fields.include_usage) == (1, False)


def test_null_is_accepted_for_unsupported_fields_but_not_for_unknown_ones():
    assert fields_of(typical_p=None) == fields_of()
    for wrong in ({"typical_p": 1}, {"temprature": None}):
        with pytest.raises(ValidationError):
            fields_of(**wrong)
