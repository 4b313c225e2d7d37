"""What a chunk of a batch is."""

from __future__ import annotations

import pytest

from streaming.backend import Chunk
from tests.support import make_sequence


@pytest.mark.parametrize(
    ("start", "num_tokens", "yields_token"),
    [(0, 2, False), (0, 3, False), (0, 4, True), (2, 2, True), (3, 1, True), (1, 2, False)],
)
def test_a_chunk_yields_a_token_where_it_reaches_the_end_of_what_is_known(
    start: int, num_tokens: int, yields_token: bool
):
    sequence = make_sequence(prompt="ask")
    sequence.append(ord("x"), at=0.0)
    assert Chunk(sequence, start, num_tokens).yields_token is yields_token
