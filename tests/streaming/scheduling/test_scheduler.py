"""Fair shares between callers, within the limits of batch, step and KV cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as SequenceOf
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.sampling_params import SamplingParams
from streaming.scheduling.block_manager import BlockManager, Prefix
from streaming.scheduling.prefill_budget import PrefillBudget
from streaming.scheduling.schedule import Schedule, ScheduledChunk
from streaming.scheduling.scheduler import Scheduler
from streaming.sequence import Sequence, SequenceState
from tests.support import make_sequence, property_test


def make_scheduler(num_sequences: int, *, max_num_seqs: int) -> tuple[Scheduler, list[Sequence]]:
    scheduler = Scheduler(max_num_seqs=max_num_seqs)
    sequences = [make_sequence(f"gen_{n}") for n in range(num_sequences)]
    for sequence in sequences:
        scheduler.add(sequence)
    return scheduler, sequences


def run(batch: Schedule | None) -> list[Sequence]:
    """Do what the engine does after a step, and return its sequences."""
    assert batch is not None
    for chunk in batch.chunks:
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        chunk.sequence.append(ord("x"), at=0.0)
    return [chunk.sequence for chunk in batch.chunks]


def test_max_num_seqs_must_be_positive():
    with pytest.raises(AssertionError):
        Scheduler(max_num_seqs=0)


def test_schedule_returns_none_without_work():
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


def test_running_sequences_keep_their_places_until_they_end():
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
    with pytest.raises(KeyError):
        scheduler.remove(a)


def test_a_chunk_is_the_prompt_at_first_then_the_newest_token():
    scheduler, (a,) = make_scheduler(1, max_num_seqs=1)
    batch = scheduler.schedule()
    assert batch == Schedule((ScheduledChunk(a, start=0, num_tokens=3),))
    assert batch.chunks[0].yields_token
    run(batch)
    assert scheduler.schedule() == Schedule((ScheduledChunk(a, start=3, num_tokens=1),))


@property_test
@given(st.lists(st.sampled_from(["add", "remove", "step"]), max_size=40), st.integers(1, 3))
def test_sequences_run_in_order_and_none_is_lost(script: list[str], max_num_seqs: int):
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


def test_without_a_block_manager_nothing_is_preempted():
    scheduler, (a, b) = make_scheduler(2, max_num_seqs=1)
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.advance(batch, duration_s=0.1)
    a.append(ord("x"), at=0.0)
    a.is_detached = True
    scheduler.mark_verified(a)
    scheduler.uncache_unverified(a)
    assert run(scheduler.schedule()) == [a]
    assert (list(scheduler.waiting), scheduler.num_preemptions) == ([b], 0)
    scheduler.check_integrity()


# With a block manager, in blocks of four tokens.

BLOCK_SIZE = 4


class CountingBlockManager(BlockManager):
    """Counts the searches for prefixes."""

    num_searches = 0

    def find_prefix(self, token_ids: SequenceOf[int]) -> Prefix:
        self.num_searches += 1
        return super().find_prefix(token_ids)


class Rig:
    """A scheduler whose batches run at once, with an integrity check at every step."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_num_seqs: int = 8,
        max_batch_tokens: int = 1000,
        turn_tokens: int = 1000,
    ) -> None:
        self.block_manager = CountingBlockManager(num_blocks=num_blocks, block_size=BLOCK_SIZE)
        self.max_batch_tokens = max_batch_tokens
        prefill_budget = PrefillBudget(max_batch_tokens=max_batch_tokens)
        # An unmeasured budget allows no prefill beside a decode.
        prefill_budget.observe_step(num_decodes=1, num_prefill_tokens=0, duration_s=0.1)
        self.scheduler = Scheduler(
            max_num_seqs=max_num_seqs,
            block_manager=self.block_manager,
            prefill_budget=prefill_budget,
            turn_tokens=turn_tokens,
        )
        self.live: list[Sequence] = []

    def add(
        self,
        prompt: str,
        *,
        caller: str = "anyone",
        priority: int = 0,
        max_tokens: int = 1000,
        prompt_logprobs: int | None = None,
    ) -> Sequence:
        sequence = make_sequence(
            f"{caller} {prompt[:9]}",
            prompt=prompt,
            caller=caller,
            priority=priority,
            params=SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs),
        )
        self.scheduler.add(sequence)
        self.live.append(sequence)
        return sequence

    def step(self, *, duration_s: float = 0.0) -> list[tuple[Sequence, int, int]]:
        """Run one step and return sequence, start and end of each chunk."""
        batch = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if batch is None:
            return []
        chunks = [(chunk.sequence, chunk.start, chunk.end) for chunk in batch.chunks]
        assert batch.num_tokens <= self.max_batch_tokens
        assert len({id(sequence) for sequence, _, _ in chunks}) == len(chunks)
        for sequence, start, end in chunks:
            assert start == sequence.num_computed_tokens
            assert end <= len(sequence.block_table.block_ids) * BLOCK_SIZE
        self.scheduler.advance(batch, duration_s=duration_s)
        for chunk, (sequence, _, _) in zip(batch.chunks, chunks, strict=True):
            if chunk.yields_token:
                sequence.append(ord("x"), at=0.0)
            if sequence.is_ended:
                self.end(sequence)
        self.scheduler.check_integrity()
        return chunks

    def end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.live.remove(sequence)

    def finish(self) -> None:
        for _ in range(5000):
            if not self.live:
                return
            assert self.step(), "a sequence is live and none runs"
        raise AssertionError("the scheduler never runs out of work")


def test_a_block_manager_needs_a_prefill_budget():
    with pytest.raises(AssertionError, match="prefill_budget"):
        Scheduler(max_num_seqs=1, block_manager=BlockManager(num_blocks=1, block_size=1))


def test_an_empty_scheduler_has_no_batch():
    assert Rig().step() == []


def test_a_prompt_is_prefilled_in_chunks_that_fit_the_budget():
    rig = Rig(max_batch_tokens=10)
    a = rig.add("a" * 25)
    assert [rig.step() for _ in range(4)] == [
        [(a, 0, 10)],
        [(a, 10, 20)],
        [(a, 20, 25)],
        [(a, 25, 26)],
    ]


@pytest.mark.pain(18)
def test_prefill_takes_the_budget_that_decodes_leave():
    rig = Rig(max_batch_tokens=10)
    a, b = rig.add("a"), rig.add("b")
    assert rig.step() == [(a, 0, 1), (b, 0, 1)]
    c, d = rig.add("c" * 12), rig.add("d" * 3)
    assert rig.step() == [(a, 1, 2), (b, 1, 2), (c, 0, 8)]
    assert rig.step() == [(a, 2, 3), (b, 2, 3), (c, 8, 12), (d, 0, 3)]
    assert [len(chunks) for chunks in (rig.step(), rig.step())] == [4, 4]


def test_the_last_token_of_a_prompt_alone_is_a_decode():
    rig = Rig(max_batch_tokens=8)
    a = rig.add("a" * 9)
    assert rig.step() == [(a, 0, 8)]
    assert rig.step() == [(a, 8, 9)]
    assert len(a.output_ids) == 1


def test_a_full_batch_starts_no_sequence():
    rig = Rig(max_num_seqs=2)
    a, b, c = rig.add("a"), rig.add("b"), rig.add("c")
    rig.step()
    assert [chunk[0] for chunk in rig.step()] == [a, b]
    rig.end(a)
    assert [chunk[0] for chunk in rig.step()] == [b, c]


def test_a_step_full_of_decodes_has_no_prefill():
    rig = Rig(max_batch_tokens=2)
    a, b, c = rig.add("a"), rig.add("b"), rig.add("c")
    rig.step()
    assert [chunk[0] for chunk in rig.step()] == [a, b]
    rig.end(b)
    assert [chunk[0] for chunk in rig.step()] == [a, c]


def test_measured_steps_size_the_next_chunk():
    rig = Rig(num_blocks=128)
    a = rig.add("ab")
    rig.step(duration_s=0.002)  # a millisecond for each prompt token
    rig.step(duration_s=0.1)
    b = rig.add("b" * 400)
    assert rig.step() == [(a, 3, 4), (b, 0, 143)]


# Prefix hits.


def test_a_cached_prefix_is_not_computed_again():
    rig = Rig()
    first = rig.add("abcdefghij", max_tokens=1)
    rig.step()
    assert first.is_ended
    second = rig.add("abcdefghXY")
    assert rig.step() == [(second, 8, 10)]


def test_a_sequence_waits_for_a_prefix_that_another_one_computes():
    rig = Rig(max_batch_tokens=8)
    first, second = rig.add("abcdefghijklm"), rig.add("abcdefghijklm")
    other = rig.add("other")
    assert rig.step() == [(first, 0, 8)]
    # The second one waits for the third block. A sequence that does not need it goes before.
    assert rig.step() == [(first, 8, 13), (other, 0, 3)]
    assert rig.step() == [(first, 13, 14), (other, 3, 5), (second, 12, 13)]


def test_many_choices_of_one_prompt_share_one_prefill():
    rig = Rig()
    choices = [rig.add("abcdefghi") for _ in range(4)]
    assert rig.step() == [(choices[0], 0, 9)]
    assert rig.step() == [
        (choices[0], 9, 10),
        *((choice, 8, 9) for choice in choices[1:]),
    ]


def test_a_prefix_is_computed_by_the_next_sequence_if_the_first_one_leaves():
    rig = Rig(max_batch_tokens=4)
    first, second = rig.add("abcdefghijklm"), rig.add("abcdefghijklm")
    assert rig.step() == [(first, 0, 4)]
    rig.end(first)
    assert rig.step() == [(second, 4, 8)]


def test_uncached_blocks_are_computed_again():
    rig = Rig()
    broken = rig.add("abcdefghi")
    rig.step()
    rig.scheduler.uncache_unverified(broken)
    rig.end(broken)
    fine = rig.add("abcdefghi")
    assert rig.step() == [(fine, 0, 9)]


def test_verified_blocks_are_shared_after_a_sequence_broke():
    rig = Rig()
    fine = rig.add("abcdefghi")
    rig.step()
    rig.scheduler.mark_verified(fine)
    broken = rig.add("abcdefghijklmn")
    rig.step()
    rig.scheduler.uncache_unverified(broken)
    rig.end(broken)
    again = rig.add("abcdefghijklmn")
    assert (again, 8, 14) in rig.step()


# Preemption for blocks.


def test_the_youngest_sequence_is_preempted_and_recomputed():
    rig = Rig(num_blocks=4)
    old, young = rig.add("old!"), rig.add("yng!")
    steps = [rig.step() for _ in range(6)]
    assert steps[0] == [(old, 0, 4), (young, 0, 4)]
    assert steps[5] == [(old, 8, 9)]
    assert (young.state, young.num_computed_tokens) == (SequenceState.WAITING, 0)
    assert (young.block_table.block_ids, len(young.output_ids)) == ((), 5)
    assert (rig.scheduler.num_preemptions, rig.scheduler.waiting) == (1, (young,))
    rig.end(old)
    assert rig.step() == [(young, 4, 9)], (
        "only the blocks that the older sequence took are recomputed"
    )


def test_a_preempted_sequence_goes_before_the_others_of_its_caller():
    rig = Rig(num_blocks=4)
    rig.add("old!")
    young = rig.add("yng!")
    rig.step()
    later = rig.add("late")
    for _ in range(5):
        rig.step()
    assert rig.scheduler.waiting == (young, later)


def test_a_sequence_may_be_preempted_in_the_middle_of_its_prompt():
    rig = Rig(num_blocks=5, max_batch_tokens=2)
    old = rig.add("ab", max_tokens=9)
    rig.step()
    young = rig.add("cdefghijklmn", max_tokens=2)
    while rig.scheduler.num_preemptions == 0:
        computed = young.num_computed_tokens
        rig.step()
    assert 0 < computed < 12
    assert (young.num_computed_tokens, len(young.output_ids)) == (0, 0)
    rig.finish()
    assert [len(sequence.output_ids) for sequence in (old, young)] == [9, 2]


def test_a_sequence_starts_only_with_a_spare_block_per_running_one():
    rig = Rig(num_blocks=4)
    old = rig.add("a" * 8)
    rig.step()
    big = rig.add("b" * 8)
    assert rig.step() == [(old, 8, 9)]
    assert rig.scheduler.waiting == (big,)
    small = rig.add("c", priority=1)
    rig.end(old)
    assert [chunk[0] for chunk in rig.step()] == [small, big]


def test_a_smaller_sequence_does_not_overtake_one_that_waits_for_blocks():
    rig = Rig(num_blocks=4)
    old = rig.add("a" * 8)
    rig.step()
    big, small = rig.add("b" * 12), rig.add("c")
    assert rig.step() == [(old, 8, 9)]
    rig.end(old)
    assert rig.step() == [(big, 0, 12)]
    assert rig.scheduler.waiting == (small,)


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_sequence_that_fits_the_cache_alone_is_served_to_its_last_block(
    num_blocks: int, is_known: bool
):
    """The last token is never run, so a cache of n tokens serves n + 1."""
    size = num_blocks * BLOCK_SIZE
    for num_prompt_tokens in range(1, size + 1):
        rig = Rig(num_blocks=num_blocks)
        prompt = "abcdefghijkl"[:num_prompt_tokens]
        if is_known:
            rig.add(prompt, max_tokens=1)
            rig.finish()
        sequence = rig.add(prompt, max_tokens=size + 1 - num_prompt_tokens)
        rig.finish()
        assert sequence.num_tokens == size + 1
        assert (rig.scheduler.num_preemptions, rig.block_manager.num_free_blocks) == (0, num_blocks)


def test_a_preempted_sequence_may_end_while_it_waits():
    rig = Rig(num_blocks=4)
    old, young = rig.add("old!"), rig.add("yng!")
    while rig.scheduler.num_preemptions == 0:
        rig.step()
    young.cancel(at=0.0)
    rig.end(young)
    rig.scheduler.check_integrity()
    assert list(rig.scheduler) == [old]


# Detached sequences.


def test_a_detached_sequence_loses_its_place_when_others_wait():
    rig = Rig(max_num_seqs=2)
    gone, here = rig.add("gone"), rig.add("here")
    rig.step()
    rig.scheduler.set_detached(gone, is_detached=True)
    assert [chunk[0] for chunk in rig.step()] == [gone, here], "no sequence needs its place"
    new = rig.add("new")
    assert [chunk[0] for chunk in rig.step()] == [here, new]
    assert rig.scheduler.waiting == (gone,)
    rig.scheduler.set_detached(gone, is_detached=False)
    rig.end(here)
    assert [chunk[0] for chunk in rig.step()] == [new, gone]


def test_a_detached_sequence_loses_its_blocks_when_others_wait():
    rig = Rig(num_blocks=4)
    gone = rig.add("g" * 12)
    rig.step()
    rig.scheduler.set_detached(gone, is_detached=True)
    new = rig.add("n" * 8)
    assert rig.step() == [(new, 0, 8)]
    assert rig.scheduler.num_preemptions == 1


def test_nothing_is_preempted_while_there_is_room():
    rig = Rig(num_blocks=8)
    gone = rig.add("gone")
    rig.step()
    rig.scheduler.set_detached(gone, is_detached=True)
    new = rig.add("new")
    assert [chunk[0] for chunk in rig.step()] == [gone, new]
    assert rig.scheduler.num_preemptions == 0


def test_nothing_is_preempted_for_a_detached_sequence():
    rig = Rig(max_num_seqs=1)
    gone = rig.add("gone")
    rig.step()
    rig.scheduler.set_detached(gone, is_detached=True)
    rig.scheduler.set_detached(rig.add("too"), is_detached=True)
    assert [chunk[0] for chunk in rig.step()] == [gone]


def test_as_many_as_needed_are_preempted_the_youngest_first():
    rig = Rig(max_num_seqs=3, num_blocks=8)
    first, second, third = (rig.add(text) for text in ("aaaa", "bbbb", "cccc"))
    rig.step()
    for sequence in (first, second, third):
        rig.scheduler.set_detached(sequence, is_detached=True)
    big = rig.add("d" * 20)
    steps = [rig.step() for _ in range(3)]
    assert big in [chunk[0] for chunk in steps[-1]]
    assert first in rig.scheduler.running
    assert set(rig.scheduler.waiting) <= {second, third}


# Callers with fewer places than others.


def owners(sequences: SequenceOf[Sequence]) -> Counter[str]:
    return Counter(sequence.caller for sequence in sequences)


def test_a_new_caller_takes_a_place_from_the_caller_that_runs_most():
    rig = Rig(max_num_seqs=4)
    greedy = [rig.add(f"{n}", caller="greedy") for n in range(8)]
    rig.step()
    one = rig.add("one", caller="one")
    assert [chunk[0] for chunk in rig.step()] == greedy[:4], (
        "its counter was lifted, so the others are next"
    )
    assert [chunk[0] for chunk in rig.step()] == [*greedy[:3], one]
    assert len(one.output_ids) == 1
    assert rig.scheduler.waiting == tuple(greedy[3:]), (
        "a preempted sequence goes before the others of its caller"
    )
    for _ in range(50):
        rig.step()
    assert rig.scheduler.num_preemptions == 1, "nothing is preempted from a fair share"
    rig.end(one)
    assert [chunk[0] for chunk in rig.step()] == greedy[:4]


def test_callers_come_to_run_equally_many():
    rig = Rig(max_num_seqs=6)
    for n in range(9):
        rig.add(f"a {n}", caller="a")
    rig.step()
    for n in range(9):
        rig.add(f"b {n}", caller="b")
    for n in range(9):
        rig.add(f"c {n}", caller="c")
    for _ in range(10):
        rig.step()
    assert owners(rig.scheduler.running) == {"a": 2, "b": 2, "c": 2}
    assert rig.scheduler.num_preemptions == 4


def test_a_caller_does_not_preempt_itself():
    rig = Rig(max_num_seqs=2, turn_tokens=3)
    first = [rig.add(f"{n}") for n in range(4)][:2]
    for _ in range(20):
        assert [chunk[0] for chunk in rig.step()] == first


def test_more_callers_than_places_take_turns():
    rig = Rig(max_num_seqs=1, turn_tokens=5)
    a, b, c = (rig.add(name, caller=name, max_tokens=12) for name in "abc")
    for _ in range(5):
        assert [chunk[0] for chunk in rig.step()] == [a]
    for _ in range(5):
        assert [chunk[0] for chunk in rig.step()] == [b]
    assert rig.step() == [(c, 0, 1)]
    rig.finish()
    assert rig.scheduler.num_preemptions == 6, "in its last turn, each one ends"


def test_a_turn_counts_new_tokens_and_no_recomputed_ones():
    rig = Rig(max_num_seqs=1, max_batch_tokens=2, turn_tokens=3, num_blocks=8)
    a, b = rig.add("a" * 20, caller="a", max_tokens=9), rig.add("b" * 20, caller="b", max_tokens=9)
    rig.finish()
    assert (len(a.output_ids), len(b.output_ids)) == (9, 9)
    assert rig.scheduler.num_preemptions == 4


def test_a_higher_priority_is_never_preempted():
    rig = Rig(max_num_seqs=2)
    high = [rig.add(f"{n}", caller="high", priority=1) for n in range(2)]
    rig.step()
    low = rig.add("low", caller="low")
    assert [chunk[0] for chunk in rig.step()] == high
    higher = rig.add("higher", caller="low", priority=1)
    assert [chunk[0] for chunk in rig.step()] == [high[0], higher]
    assert rig.scheduler.waiting == (high[1], low)


def test_a_sequence_preempted_for_a_new_caller_goes_after_it():
    """The caller of the preempted sequence had nothing waiting, so its counter is lifted."""
    rig = Rig(max_num_seqs=2)
    busy = [rig.add(f"{n}", caller="busy") for n in range(2)]
    rig.step()
    one = rig.add("one", caller="one")
    assert [chunk[0] for chunk in rig.step()] == [busy[0], one]


def test_a_new_caller_takes_blocks_as_it_takes_places():
    rig = Rig(num_blocks=12)
    greedy = [rig.add(f"{n}" * 12, caller="greedy") for n in range(3)]
    rig.step()
    one = rig.add("o" * 8, caller="one")
    assert [chunk[0] for chunk in rig.step()] == [*greedy[:2], one]


def test_a_growing_sequence_takes_blocks_from_the_caller_that_runs_most():
    rig = Rig(num_blocks=12)
    greedy = [rig.add(f"{n}" * 4, caller="greedy") for n in range(3)]
    rig.step()
    one = rig.add("o" * 4, caller="one")
    for _ in range(2):
        rig.step()
    assert (rig.scheduler.running, rig.scheduler.num_preemptions) == ((*greedy, one), 0)
    while not rig.scheduler.num_preemptions:
        rig.step()
    assert set(rig.scheduler.running) == {*greedy[:2], one}


def test_the_caller_that_was_served_least_is_prefilled_first():
    rig = Rig(max_batch_tokens=10, num_blocks=128)
    greedy = [rig.add(f"{n}" * 100, caller="greedy") for n in range(3)]
    for _ in range(3):
        assert [chunk[0] for chunk in rig.step()] == [greedy[0]]
    one = rig.add("o" * 25, caller="one")
    first_steps = [rig.step() for _ in range(5)]
    assert [sum(end - start for _, start, end in each) for each in first_steps] == [10] * 5
    assert len(one.output_ids) >= 1, "they alternate by tokens served"
    assert greedy[0].num_computed_tokens >= 30


def test_without_a_block_manager_a_new_caller_is_next_when_a_sequence_ends():
    scheduler = Scheduler(max_num_seqs=2)
    greedy = [make_sequence(f"{n}", caller="greedy") for n in range(6)]
    for sequence in greedy:
        scheduler.add(sequence)
    batch = scheduler.schedule()
    assert batch is not None
    run(batch)
    scheduler.advance(batch, duration_s=0.0)
    one = make_sequence("one", caller="one")
    scheduler.add(one)
    for _ in range(3):
        batch = scheduler.schedule()
        assert batch is not None
        assert run(batch) == greedy[:2]
        scheduler.advance(batch, duration_s=0.0)
    scheduler.remove(greedy[0])
    assert run(scheduler.schedule()) == [greedy[1], one]


# The cost of a step.


class Probe:
    """A waiting sequence that counts the reads of its tokens, over all probes."""

    num_looks: ClassVar[int] = 0

    def __init__(self, caller: str) -> None:
        self.caller, self.priority, self.is_detached, self.num_tokens = caller, 0, False, 3

    def __getattribute__(self, name: str) -> Any:
        Probe.num_looks += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("names", ["a", "abc"])
def test_a_full_batch_searches_no_prefixes(names: str):
    rig = Rig(max_num_seqs=6)
    for n in range(6):
        rig.add(f"{n}", caller=names[n % len(names)])
    for n in range(10_000):
        rig.scheduler.add(Probe(names[n % len(names)]))  # type: ignore[arg-type]
    scheduler, searches, looks = rig.scheduler, [], []
    for _ in range(20):
        rig.block_manager.num_searches = Probe.num_looks = 0
        batch = scheduler.schedule()
        assert batch is not None
        looks.append(Probe.num_looks)
        searches.append(rig.block_manager.num_searches)
        scheduler.advance(batch, duration_s=0.0)
        run_again = [chunk.sequence for chunk in batch.chunks]
        for sequence in run_again:
            sequence.append(ord("x"), at=0.0)
    assert searches == [6] + [0] * 19
    assert max(looks[1:]) <= 8, "only the head is read, to see that it must wait"


def test_a_step_without_a_budget_searches_no_prefixes():
    rig = Rig(max_batch_tokens=2)
    rig.add("a"), rig.add("b")
    rig.step()
    for n in range(100):
        rig.add(f"{n}")
    rig.block_manager.num_searches = 0
    for _ in range(10):
        assert len(rig.step()) == 2
    assert rig.block_manager.num_searches == 0


def test_a_step_skips_few_sequences_that_wait_for_a_prefix():
    rig = Rig(max_batch_tokens=8, max_num_seqs=64, num_blocks=1024)
    for _ in range(200):
        rig.add("the same prompt of all of them")
    rig.step()
    rig.block_manager.num_searches = 0
    rig.step()
    assert rig.block_manager.num_searches <= 16


# Random operations.

actions = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30), st.sampled_from("ABC"), st.integers(0, 1)),
    st.tuples(st.just("step"), st.just(0), st.none(), st.none()),
    st.tuples(st.just("remove"), st.integers(0, 9), st.none(), st.none()),
    st.tuples(st.just("detach"), st.integers(0, 9), st.none(), st.none()),
    st.tuples(st.just("attach"), st.integers(0, 9), st.none(), st.none()),
)


@property_test
@given(
    st.lists(actions, max_size=40),
    st.integers(8, 20),
    st.integers(1, 4),
    st.sampled_from([1, 5, 64]),
)
def test_every_sequence_is_served_to_its_end(
    script: list[tuple[str, int, str | None, int | None]],
    num_blocks: int,
    max_num_seqs: int,
    max_batch_tokens: int,
):
    """Integrity is checked after every step, and nothing is left at the end."""
    rig = Rig(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens)
    for action, number, caller, priority in script:
        target = rig.live[number % len(rig.live)] if rig.live else None
        if action == "add" and caller is not None:
            # Few texts, so that prefix hits are frequent.
            prompt = ("abcd" * 8)[:number] if number % 2 else f"{caller}" * number
            max_tokens = min(9, num_blocks * BLOCK_SIZE - number)
            rig.add(prompt, caller=caller, priority=priority or 0, max_tokens=max_tokens)
        elif action == "step":
            rig.step()
        elif action == "remove" and target is not None:
            rig.end(target)
        elif target is not None:
            rig.scheduler.set_detached(target, is_detached=action == "detach")
    sequences = tuple(rig.live)
    rig.finish()
    assert all(len(sequence.output_ids) == sequence.max_tokens for sequence in sequences)
    assert (len(rig.scheduler), rig.block_manager.num_free_blocks) == (0, num_blocks)


def test_a_prompt_with_logprobs_ignores_the_prefix_cache_but_fills_it():
    rig = Rig(max_batch_tokens=10)
    a = rig.add("same prompt", prompt_logprobs=0, max_tokens=1)
    assert [rig.step(), rig.step()] == [[(a, 0, 10)], [(a, 10, 11)]]
    b = rig.add("same prompt", prompt_logprobs=0, max_tokens=1)
    c = rig.add("same prompt", max_tokens=1)
    assert rig.step() == [(b, 0, 10)]
    assert rig.step() == [(b, 10, 11), (c, 8, 11)]


def test_a_preempted_prompt_with_reported_logprobs_uses_the_prefix_cache():
    rig = Rig(num_blocks=6)
    a = rig.add("a" * 8)
    b = rig.add("b" * 8, prompt_logprobs=0)
    while not rig.scheduler.num_preemptions:
        rig.step()
    assert (b.state, b.wants_prompt_logprobs) == (SequenceState.WAITING, False)
    rig.scheduler.remove(a)
    rig.live.remove(a)
    assert rig.step() == [(b, 8, b.num_tokens - 1)]


@property_test
@given(
    num_greedy=st.integers(1, 6),
    num_each=st.integers(1, 9),
    prompt_tokens=st.integers(1, 30),
    num_steps_before=st.integers(0, 25),
    max_num_seqs=st.integers(1, 6),
    num_blocks=st.integers(16, 64),
    max_batch_tokens=st.sampled_from([8, 64]),
)
def test_a_caller_with_one_request_gets_its_first_token_soon(
    num_greedy: int,
    num_each: int,
    prompt_tokens: int,
    num_steps_before: int,
    max_num_seqs: int,
    num_blocks: int,
    max_batch_tokens: int,
):
    """However many requests the others have, and whatever else runs."""
    turn_tokens = 4
    rig = Rig(
        max_num_seqs=max_num_seqs,
        num_blocks=num_blocks,
        max_batch_tokens=max_batch_tokens,
        turn_tokens=turn_tokens,
    )
    max_tokens = 16 * BLOCK_SIZE - prompt_tokens

    def refill() -> None:
        num_live = owners(rig.live)
        for n in range(num_greedy):
            for _ in range(num_each - num_live[f"g{n}"]):
                rig.add("x" * prompt_tokens, caller=f"g{n}", max_tokens=max_tokens)

    for _ in range(num_steps_before):
        refill()
        rig.step()
    one = rig.add("o" * prompt_tokens, caller="one", max_tokens=max_tokens)
    # Each caller may have a turn before it: a prefill of at most 64 recomputed tokens, beside
    # decodes of others, and then its four tokens.
    turn_steps = 64 // (max_batch_tokens - max_num_seqs) + 1 + turn_tokens
    bound = (num_greedy + 1) * turn_steps + prompt_tokens
    for _ in range(bound):
        refill()
        rig.step()
        if one.output_ids:
            break
    assert one.output_ids, f"not in {bound} steps"
