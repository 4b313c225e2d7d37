"""What a runner is given for a step: plain data."""

from __future__ import annotations

import pickle
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.backend import Batch, Chunk, SequenceInput, TokenView
from streaming.sampling_params import SamplingParams
from tests.support import property_test


def chunk(start: int, num_tokens: int, *, yields_token: bool, min_tokens: int = 0) -> Chunk:
    """Return a chunk of a sequence whose prompt has three tokens."""
    sequence = SequenceInput(
        generation_id="gen_1",
        num_prompt_tokens=3,
        params=SamplingParams(max_tokens=9, min_tokens=min_tokens),
    )
    return Chunk(sequence, start, tuple(range(num_tokens)), yields_token=yields_token)


@pytest.mark.parametrize(
    ("start", "num_tokens", "yields_token", "is_decode"),
    [(0, 2, False, False), (0, 1, False, False), (0, 4, True, False), (3, 1, True, True)],
)
def test_a_decode_is_one_token_that_yields_the_next(
    start: int, num_tokens: int, yields_token: bool, is_decode: bool
):
    each = chunk(start, num_tokens, yields_token=yields_token)
    assert (each.num_tokens, each.end) == (num_tokens, start + num_tokens)
    assert each.is_decode is is_decode


@pytest.mark.parametrize(
    ("end", "position", "must_not_end"), [(3, 0, True), (4, 1, True), (5, 2, False)]
)
def test_a_text_may_end_from_min_tokens_on(end: int, position: int, must_not_end: bool):
    each = chunk(0, end, yields_token=True, min_tokens=2)
    assert (each.output_position, each.must_not_end) == (position, must_not_end)
    assert not chunk(0, end, yields_token=True).must_not_end


def test_a_batch_counts_the_tokens_of_all_chunks():
    chunks = (chunk(0, 3, yields_token=True), chunk(3, 1, yields_token=True))
    assert Batch(chunks).num_tokens == 4


slices = st.slices(12)


@property_test
@given(st.lists(st.integers(0, 99), max_size=9), st.lists(st.integers(0, 99), max_size=3), slices)
def test_a_view_shows_the_tokens_that_were_there(
    token_ids: list[int], later: list[int], piece: slice
):
    growing = array("i", token_ids)
    view = TokenView(growing, len(growing))
    growing.extend(later)
    copy = pickle.loads(pickle.dumps(view))
    assert copy == view
    for shown in (view, copy):
        assert list(shown) == token_ids
        assert list(shown[piece]) == token_ids[piece]
        assert [shown[at] for at in range(-len(token_ids), len(token_ids))] == token_ids * 2
        with pytest.raises(IndexError):
            shown[len(token_ids)]


def test_views_of_other_tokens_differ():
    view = TokenView([1, 2, 3], 2)
    assert view == TokenView((1, 2), 2)
    assert view != TokenView([1, 2, 3], 3)
    assert view != [1, 2]
