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
    ("params", "has_matcher", "best", "told"),
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
            *(False, -inf, "repetition_penalty: it makes logits larger than numbers can be"),
        ),
        (
            {"repetition_penalty": 0.1, "grammar": ANY_TEXT, "min_tokens": 1},
            *(True, inf, "repetition_penalty: it makes logits larger than numbers can be"),
        ),
    ],
)
def test_the_rule_that_leaves_no_token_is_named(
    params: dict[str, Any], has_matcher: bool, best: float, told: str
) -> None:
    matcher = WordMatcher("a") if has_matcher else None
    sequence = make_sequence(params=SamplingParams(max_tokens=9, **params), matcher=matcher)
    row = no_token_allowed(chunk_of(sequence), best)
    assert isinstance(row.error, NoTokenAllowed)
    assert (row.reason, str(row.error)) == (told, told)


def test_logits_that_are_no_numbers_are_no_requests_fault() -> None:
    assert NOT_FINITE.error is None
    assert str(RowFailed(NOT_FINITE)) == "the model's logits are not finite numbers"
