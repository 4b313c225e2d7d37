from __future__ import annotations

import pytest

from app.responses.dialect import ReasoningDialect, translate_errors
from streaming.errors import InvalidRequest, Overloaded, PromptTooLong


@pytest.mark.parametrize(
    ("engine_param", "param"),
    [
        ("messages", "input"),
        ("max_tokens", "max_output_tokens"),
        ("logprobs", "top_logprobs"),
        ("temperature", "temperature"),
        (None, ""),
    ],
)
def test_invalid_requests_name_the_field_of_this_dialect(engine_param: str | None, param: str):
    with pytest.raises(InvalidRequest) as translated, translate_errors():
        raise InvalidRequest(param=engine_param or "", reason="is wrong")
    assert (translated.value.param, translated.value.reason) == (param, "is wrong")


def test_a_prompt_that_is_too_long_keeps_its_numbers():
    with pytest.raises(PromptTooLong) as translated, translate_errors():
        raise PromptTooLong(size=9, limit=4, param="messages")
    error = translated.value
    assert (error.size, error.limit, error.param) == (9, 4, "input")


def test_other_errors_pass_unchanged():
    overloaded = Overloaded(num_waiting=1, max_waiting=1, retry_after_s=1)
    with pytest.raises(Overloaded) as raised, translate_errors():
        raise overloaded
    assert raised.value is overloaded


def test_the_dialects_use_different_event_types_for_reasoning():
    prefixes = [dialect.event_prefix for dialect in ReasoningDialect]
    assert prefixes == ["response.reasoning_text", "response.reasoning"]
