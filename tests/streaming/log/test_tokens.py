"""A view is a sequence of the tokens that existed when it was created."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.log.records import Logprob, RecordColumns, Tail, Token, TokenLogprobs
from streaming.log.tokens import Tokens
from tests.support import property_test


def token(number: int, *, num_top: int = 0, text: str = "word ") -> Token:
    top = tuple(Logprob(number + rank, -0.5 - rank) for rank in range(num_top))
    scores = TokenLogprobs(Logprob(number, -0.25), top) if num_top else None
    return Token(number, text, float(number), scores)


def make_columns(records: list[Token | Tail]) -> RecordColumns:
    columns = RecordColumns()
    for record in records:
        columns.append(record)
    return columns


@property_test
@given(
    st.lists(st.sampled_from(["", "a", "é", "tail"]), max_size=12),
    st.slices(12),
    st.integers(0, 2),
)
def test_any_slice_equals_that_of_a_tuple(texts: list[str], part: slice, num_top: int):
    columns = make_columns(
        [
            Tail(text, at=0.0) if text == "tail" else token(number, text=text, num_top=num_top)
            for number, text in enumerate(texts)
        ]
    )
    everything = Tokens(columns, columns.token_numbers(0, len(columns)))
    expected = tuple(
        token(number, text=text, num_top=num_top)
        for number, text in enumerate(texts)
        if text != "tail"
    )
    for view, tokens in ((everything, expected), (everything[part], expected[part])):
        assert view == tokens
        assert (len(view), list(reversed(view))) == (len(tokens), list(reversed(tokens)))
        assert view.ids == [each.token_id for each in tokens]
        assert view.text == "".join(each.text for each in tokens)
        assert list(view.texts()) == [each.text for each in tokens]
        assert [len(scores) for scores in view.scores()] == [num_top and 1 + num_top] * len(tokens)
        assert [view.time_of(i) for i in range(len(view))] == [each.at for each in tokens]


def test_a_view_contains_the_tokens_that_existed_when_it_was_created():
    columns = make_columns([token(number) for number in range(5)])
    view = Tokens(columns, columns.token_numbers(0, 5))
    columns.append(token(5))
    expected = tuple(token(number) for number in range(5))
    assert view == expected
    assert (len(view), tuple(view)) == (5, expected)
    assert (view[0], view[-1]) == (expected[0], expected[-1])
    with pytest.raises(IndexError):
        view[5]
    for part in (slice(1, 3), slice(3, 1), slice(None, None, 2), slice(9, None), slice(-2, None)):
        assert view[part] == expected[part]
        assert view[part].ids == [each.token_id for each in expected[part]]
        assert view[part].text == "".join(each.text for each in expected[part])
    assert view != expected[:4]
    assert view != 5
    assert repr(view[:1]) == f"Tokens.of([{expected[0]!r}])"


def test_tokens_without_a_log():
    expected = (token(1, num_top=1), token(2))
    assert Tokens.of(expected) == expected
    assert not Tokens.of(())
