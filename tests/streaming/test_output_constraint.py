"""The limit on a grammar's size, and its use as a key."""

from __future__ import annotations

import pytest

from streaming.errors import InvalidRequest
from streaming.output_constraint import MAX_GRAMMAR_CHARS, Grammar, GrammarKind


def test_a_source_at_the_limit_is_accepted():
    source = "a" * MAX_GRAMMAR_CHARS
    assert Grammar(GrammarKind.REGEX, source).source == source


def test_a_source_over_the_limit_is_rejected_with_both_sizes():
    with pytest.raises(InvalidRequest) as caught:
        Grammar(GrammarKind.LARK, "a" * (MAX_GRAMMAR_CHARS + 1))
    assert str(caught.value) == "response_format: must have at most 65536 characters (got 65537)"


def test_equal_grammars_have_the_same_hash():
    """Admission compiles a grammar once for all choices of a request."""
    grammars = [Grammar(GrammarKind.REGEX, "a"), Grammar(GrammarKind.REGEX, "a")]
    assert len({*grammars, Grammar(GrammarKind.LARK, "a")}) == 2
