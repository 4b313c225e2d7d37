"""A scheduled chunk as plain data: what a runner needs of the sequence, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from streaming.backend import Chunk, TokenView
from streaming.sampling_params import SamplingParams
from streaming.scheduling.schedule import Schedule, ScheduledChunk
from streaming.sequence import Sequence
from tests.support import Panic, WordMatcher, make_sequence


def sequence_with(**fields: Any) -> Sequence:
    """Return a sequence with the prompt "ask", the output "x" and two blocks."""
    params = SamplingParams(max_tokens=9, **fields.pop("params", {}))
    sequence = make_sequence(prompt="ask", params=params, **fields)
    sequence.append(ord("x"), at=0.0)
    sequence.block_table.block_ids = (7, 3)
    return sequence


@pytest.mark.parametrize(
    ("start", "num_tokens", "yields_token", "is_decode"),
    [
        *[(0, 2, False, False), (0, 3, False, False), (1, 2, False, False), (2, 1, False, False)],
        *[(0, 4, True, False), (2, 2, True, False), (3, 1, True, True)],
    ],
)
def test_a_chunk_yields_a_token_where_it_reaches_the_newest_one(
    start: int, num_tokens: int, yields_token: bool, is_decode: bool
):
    scheduled = ScheduledChunk(sequence_with(), start, num_tokens)
    chunk = scheduled.to_chunk()
    for each in (scheduled, chunk):
        assert (each.yields_token, each.is_decode) == (yields_token, is_decode)
        assert (each.start, each.end) == (start, start + num_tokens)
    assert chunk.token_ids == tuple(b"askx")[start : start + num_tokens]


def test_a_plain_chunk_carries_no_more_than_its_tokens_and_blocks():
    sequence = sequence_with()
    assert ScheduledChunk(sequence, 3, 1).to_chunk() == Chunk(
        sequence.input, 3, (ord("x"),), (7, 3), yields_token=True
    )


def test_all_chunks_of_a_sequence_share_what_stays_the_same():
    sequence = sequence_with()
    chunks = [ScheduledChunk(sequence, start, 2).to_chunk() for start in (0, 2)]
    assert all(chunk.sequence is sequence.input for chunk in chunks)


def test_penalties_see_the_text_as_it_was():
    sequence = sequence_with(params={"presence_penalty": 1.0})
    chunk = ScheduledChunk(sequence, 3, 1).to_chunk()
    sequence.append(ord("y"), at=0.0)
    assert isinstance(chunk.text_ids, TokenView)
    assert bytes(chunk.text_ids) == b"askx"
    assert ScheduledChunk(sequence, 0, 2).to_chunk().text_ids is None, "it yields no token"


def test_a_mask_comes_with_the_chunk_that_yields_a_token():
    sequence = sequence_with(matcher=WordMatcher("xyz"))
    assert sequence.matcher is not None
    assert ScheduledChunk(sequence, 0, 4).to_chunk().token_mask == sequence.matcher.mask()
    assert ScheduledChunk(sequence, 0, 2).to_chunk().token_mask is None


class PanickingMatcher(WordMatcher):
    def mask(self) -> bytes:
        raise Panic("index out of range")


def test_what_a_matcher_raises_is_passed_on():
    sequence = sequence_with(matcher=PanickingMatcher("xyz"))
    with pytest.raises(Panic):
        ScheduledChunk(sequence, 3, 1).to_chunk()


def test_a_prompt_is_scored_up_to_its_end_and_before_the_first_token():
    sequence = make_sequence(prompt="abcd", params=SamplingParams(max_tokens=9, prompt_logprobs=0))
    whole = [(0, 2), (2, 2), (0, 4), (3, 1)]
    scored = [bytes(ScheduledChunk(sequence, *span).to_chunk().scored_ids) for span in whole]
    assert scored == [b"bc", b"d", b"bcd", b""]
    sequence.score_prompt([None] * 3, at=0.0)  # type: ignore[list-item]
    sequence.append(ord("x"), at=0.0)
    # Preempted after its first token, and read again.
    assert ScheduledChunk(sequence, 0, 5).to_chunk().scored_ids == ()


def test_a_schedule_counts_the_tokens_of_all_chunks():
    chunks = (ScheduledChunk(sequence_with(), 0, 3), ScheduledChunk(sequence_with(), 3, 1))
    assert Schedule(chunks).num_tokens == 4
