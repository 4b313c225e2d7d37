from __future__ import annotations

from math import inf
from typing import Any

import pytest

from streaming import Grammar, GrammarKind, SamplingParams
from streaming.backends.sampling.row_failure import NOT_FINITE, RowFailed, no_token_allowed
from streaming.errors import NoTokenAllowed
from tests.support import WordMatcher, chunk_of, make_sequence

ANY_TEXT = Grammar(GrammarKind.REGEX, ".*")


@pytest.mark.parametrize(
    ("params", "has_matcher", "best", "message"),
    [
        ({"grammar": ANY_TEXT}, True, -inf, "response_format: the grammar allows no token here"),
        (
            {"grammar": ANY_TEXT, "min_tokens": 1},
            *(True, -inf, "response_format: the grammar allows no token here"),
        ),
        ({}, True, -inf, "tools: the grammar allows no token here"),
        ({"min_tokens": 1}, False, -inf, "min_tokens: every token here would end the text"),
        (
            {"repetition_penalty": 9.0},
            *(False, -inf, "repetition_penalty: it makes the logits overflow"),
        ),
        (
            {"repetition_penalty": 0.1, "grammar": ANY_TEXT, "min_tokens": 1},
            *(True, inf, "repetition_penalty: it makes the logits overflow"),
        ),
    ],
)
def test_a_failure_names_the_parameter_that_caused_it(
    params: dict[str, Any], has_matcher: bool, best: float, message: str
) -> None:
    matcher = WordMatcher("a") if has_matcher else None
    sequence = make_sequence(params=SamplingParams(max_tokens=9, **params), matcher=matcher)
    row = no_token_allowed(chunk_of(sequence), best)
    assert isinstance(row.error, NoTokenAllowed)
    assert (row.reason, str(row.error)) == (message, message)


def test_a_failure_of_the_model_names_no_parameter() -> None:
    assert NOT_FINITE.error is None
    assert str(RowFailed(NOT_FINITE)) == "the model's logits are not finite"
