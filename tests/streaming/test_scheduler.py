"""First come, first served, up to the batch's size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.backend import Batch, Chunk
from streaming.scheduler import Scheduler
from streaming.sequence import Sequence, SequenceState
from tests.support import make_sequence, property_test


def make_scheduler(num_sequences: int, *, max_num_seqs: int) -> tuple[Scheduler, list[Sequence]]:
    scheduler = Scheduler(max_num_seqs=max_num_seqs)
    sequences = [make_sequence(f"gen_{n}") for n in range(num_sequences)]
    for sequence in sequences:
        scheduler.add(sequence)
    return scheduler, sequences


def run(batch: Batch | None) -> list[Sequence]:
    """Do what the engine does after a step, and return whose it was."""
    assert batch is not None
    for chunk in batch.chunks:
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        chunk.sequence.append(ord("x"), at=0.0)
    return [chunk.sequence for chunk in batch.chunks]


def test_a_batch_holds_at_least_one():
    with pytest.raises(AssertionError):
        Scheduler(max_num_seqs=0)


def test_nothing_to_do_is_none():
    scheduler, _ = make_scheduler(0, max_num_seqs=1)
    assert scheduler.schedule() is None
    assert (len(scheduler), list(scheduler)) == (0, [])


def test_first_come_first_served_up_to_the_limit():
    scheduler, (a, b, c) = make_scheduler(3, max_num_seqs=2)
    assert scheduler.waiting == (a, b, c)
    assert run(scheduler.schedule()) == [a, b]
    assert list(scheduler.running) == [a, b]
    assert list(scheduler.waiting) == [c]
    assert (len(scheduler), list(scheduler)) == (3, [a, b, c])
    assert [sequence.state for sequence in (a, b, c)] == [
        SequenceState.RUNNING,
        SequenceState.RUNNING,
        SequenceState.WAITING,
    ]


def test_whoever_runs_goes_on_until_a_place_is_free():
    scheduler, (a, b, c) = make_scheduler(3, max_num_seqs=2)
    run(scheduler.schedule())
    assert run(scheduler.schedule()) == [a, b]
    scheduler.remove(a)
    assert run(scheduler.schedule()) == [b, c]


def test_remove_works_in_the_queue_and_in_the_batch():
    scheduler, (a, b, c) = make_scheduler(3, max_num_seqs=1)
    run(scheduler.schedule())
    scheduler.remove(b)
    scheduler.remove(a)
    assert list(scheduler) == [c]
    with pytest.raises(ValueError, match="not in"):
        scheduler.remove(a)


def test_a_chunk_is_the_prompt_at_first_then_the_newest_token():
    scheduler, (a,) = make_scheduler(1, max_num_seqs=1)
    batch = scheduler.schedule()
    assert batch == Batch((Chunk(a, start=0, num_tokens=3),))
    assert batch.chunks[0].yields_token
    run(batch)
    assert scheduler.schedule() == Batch((Chunk(a, start=3, num_tokens=1),))


def test_a_chunk_short_of_the_end_yields_nothing():
    sequence = make_sequence(prompt="ask")
    assert [Chunk(sequence, 0, size).yields_token for size in (1, 2, 3)] == [False, False, True]


@property_test
@given(st.lists(st.sampled_from(["add", "remove", "step"]), max_size=40), st.integers(1, 3))
def test_nobody_overtakes_and_nobody_is_lost(script: list[str], max_num_seqs: int):
    scheduler = Scheduler(max_num_seqs=max_num_seqs)
    live: list[Sequence] = []
    for n, action in enumerate(script):
        if action == "add":
            live.append(make_sequence(f"gen_{n}"))
            scheduler.add(live[-1])
        elif action == "remove" and live:
            scheduler.remove(live.pop(n % len(live)))
        elif action == "step" and live:
            assert run(scheduler.schedule()) == live[:max_num_seqs]
        assert list(scheduler) == live
        assert len(scheduler) == len(live)
        assert len(scheduler.running) <= max_num_seqs
