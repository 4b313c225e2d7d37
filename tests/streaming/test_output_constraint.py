from __future__ import annotations

import pytest

from streaming.errors import InvalidRequest
from streaming.output_constraint import MAX_GRAMMAR_CHARS, Grammar, GrammarKind


def test_a_source_at_the_limit_is_taken():
    source = "a" * MAX_GRAMMAR_CHARS
    assert Grammar(GrammarKind.REGEX, source).source == source


def test_a_source_over_the_limit_is_refused_with_both_sizes():
    with pytest.raises(InvalidRequest) as caught:
        Grammar(GrammarKind.LARK, "a" * (MAX_GRAMMAR_CHARS + 1))
    assert str(caught.value) == "response_format: has 65537 characters; at most 65536 are taken"


def test_equal_grammars_are_one_key():
    """The choices of one request find their grammar by it."""
    grammars = [Grammar(GrammarKind.REGEX, "a"), Grammar(GrammarKind.REGEX, "a")]
    assert len({*grammars, Grammar(GrammarKind.LARK, "a")}) == 2
