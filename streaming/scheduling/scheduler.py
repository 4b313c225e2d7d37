"""Selects which tokens run in the next step.

A step has one token for each sequence that decodes and, within the rest of its budget, chunks of
prompts (chunked prefill): first those of the callers that were served least, and within a caller
the oldest first. A sequence runs only while the KV cache has room for it. When the cache is full,
the youngest sequence of the caller that runs most is preempted, and recomputed later.

Running places (`max_num_seqs`) are shared like tokens. When none is free, the head of the queue
takes one:

* from a detached sequence, which has no subscriber;
* from the caller that runs most, if that caller still runs at least as many as the head's caller
  afterwards;
* if every caller runs one sequence and the head's caller none: from one that has had its turn of
  `turn_tokens` new tokens. So more callers than there are places take turns.

It never preempts a higher priority. A preempted sequence goes first among its caller's sequences,
and its answer stays the same: sampling depends on seed and position only. A runner without a block
manager cannot be preempted. There, a caller waits until a running sequence ends.

A step looks at waiting sequences only if a place is free, and then at few of them. The engine is
the only caller of this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from itertools import islice

from streaming.scheduling.block_manager import EMPTY_PREFIX, BlockManager, Prefix
from streaming.scheduling.fair_queue import FairQueue
from streaming.scheduling.prefill_budget import PrefillBudget
from streaming.scheduling.schedule import Schedule, ScheduledChunk
from streaming.sequence import Sequence, SequenceState

_TURN_TOKENS = 256
"""New tokens in a turn. The next turn may have to compute the prompt again, so it is not short."""
_MAX_SKIPPED = 16
"""Waiting sequences that a step may skip because another sequence is computing their prefix."""


class Scheduler:
    """Holds every live sequence, and chooses what runs in each step.

    Args:
        max_num_seqs: most sequences in one batch.
        block_manager: accounts for the KV cache. None for a runner that manages its own cache: it
            gets each prompt whole, and no sequence is ever preempted.
        prefill_budget: limits the prompt tokens of a step; required with a block manager.
        turn_tokens: new tokens after which a sequence may lose its place to a caller that has none.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        block_manager: BlockManager | None = None,
        prefill_budget: PrefillBudget | None = None,
        turn_tokens: int = _TURN_TOKENS,
    ) -> None:
        assert max_num_seqs > 0
        assert turn_tokens > 0
        assert block_manager is None or prefill_budget is not None, "set a prefill_budget"
        self._max_num_seqs = max_num_seqs
        self._block_manager = block_manager
        self._prefill_budget = prefill_budget
        self._turn_tokens = turn_tokens
        self._queue = FairQueue()
        self._running: dict[Sequence, int] = {}
        """In the order in which they started; the value is `len(output_ids)` at that time."""
        self.num_preemptions = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._queue

    @property
    def num_waiting(self) -> int:
        """Number of waiting sequences."""
        return len(self._queue)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Waiting sequences, the next one first."""
        return tuple(self._queue)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Running sequences, in the order in which they started."""
        return tuple(self._running)

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence to the queue."""
        self._queue.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that has ended, and free its blocks."""
        if sequence in self._running:
            del self._running[sequence]
        else:
            self._queue.remove(sequence)
        self._queue.finish(sequence)
        if self._block_manager is not None:
            self._block_manager.free(sequence.block_table)

    def set_detached(self, sequence: Sequence, *, is_detached: bool) -> None:
        """Mark a sequence as detached: its log has no subscriber; or as attached again."""
        self._queue.set_detached(sequence, is_detached=is_detached)

    def schedule(self) -> Schedule | None:
        """Return the work of the next step; None if there is nothing to run."""
        if self._block_manager is None or self._prefill_budget is None:
            # The runner has its own cache: each prompt is one chunk, and nothing is preempted.
            self._start_waiting()
            chunks = [
                _chunk(sequence, sequence.num_uncomputed_tokens) for sequence in self._running
            ]
        else:
            self._preempt_for_head(self._block_manager)
            chunks = self._decode(self._block_manager)
            budget = self._prefill_budget.num_tokens(num_decodes=len(chunks))
            chunks += self._prefill(self._block_manager, budget)
        return Schedule(tuple(chunks)) if chunks else None

    def advance(self, schedule: Schedule, *, duration_s: float) -> None:
        """Record that the step has run in `duration_s` seconds, and its tokens are in the cache.

        Call it before the new tokens of the step are appended: whether a chunk is a decode or
        yields a token depends on the length of its sequence when it ran.
        """
        num_decodes = 0
        for chunk in schedule.chunks:
            sequence, num_tokens = chunk.sequence, chunk.num_tokens
            sequence.num_computed_tokens = chunk.start + num_tokens
            num_decodes += num_tokens == 1 and chunk.yields_token
            self._queue.charge(sequence, num_tokens=num_tokens)
            if self._block_manager is not None:
                self._block_manager.cache_full_blocks(
                    sequence.block_table, sequence.token_ids, sequence.num_computed_tokens
                )
        if self._prefill_budget is not None:
            self._prefill_budget.observe_step(
                num_decodes=num_decodes,
                num_prefill_tokens=schedule.num_tokens - num_decodes,
                duration_s=duration_s,
            )

    def mark_verified(self, sequence: Sequence) -> None:
        """Record that the model returned finite logits for a sequence.

        The keys and values that they depend on are finite too.
        """
        if self._block_manager is not None:
            self._block_manager.mark_verified(sequence.block_table)

    def uncache_unverified(self, sequence: Sequence) -> None:
        """Take the blocks of a sequence with non-finite logits out of the prefix cache.

        Verified blocks stay: they have yielded finite logits, in this sequence or another one.
        """
        if self._block_manager is not None:
            self._block_manager.uncache_unverified(sequence.block_table)

    def check_integrity(self) -> None:
        """Assert that every block and every caller is accounted for."""
        self._queue.check_integrity(self._running)
        assert all(sequence.state is SequenceState.RUNNING for sequence in self._running)
        assert all(sequence.state is SequenceState.WAITING for sequence in self._queue)
        if self._block_manager is not None:
            assert not any(sequence.block_table.block_ids for sequence in self._queue)
            self._block_manager.check_integrity(sequence.block_table for sequence in self._running)

    # Without a block manager.

    def _start_waiting(self) -> None:
        num_free = self._max_num_seqs - len(self._running)
        if num_free and len(self._queue):
            for sequence in tuple(islice(self._queue, num_free)):
                self._queue.start(sequence)
                self._run(sequence)

    # With a block manager.

    def _preempt_for_head(self, block_manager: BlockManager) -> None:
        """Preempt sequences until the head of the queue fits, while it has a right to a place."""
        while len(self._queue) and self._can_preempt():
            head = self._queue.head
            assert head is not None
            if head.is_detached or (victim := self._victim_for(head)) is None:
                return
            if self._fits(block_manager, head):
                return
            self._preempt(block_manager, victim, behind=head)

    def _can_preempt(self) -> bool:
        """Whether any sequence could lose its place; cheaper than finding the head of the queue."""
        callers = {sequence.caller for sequence in self._running}
        return len(callers) < len(self._running) or any(
            sequence.is_detached or self._has_had_turn(sequence) for sequence in self._running
        )

    def _victim_for(self, head: Sequence) -> Sequence | None:
        """Return the sequence to preempt for `head`; None if it has no right to a place."""
        # Detached sequences first, the youngest of them: no client waits for their tokens.
        detached = [sequence for sequence in self._running if sequence.is_detached]
        if detached:
            return detached[-1]
        num_running = Counter(sequence.caller for sequence in self._running)
        num_own = num_running[head.caller]
        lower = [sequence for sequence in self._running if sequence.priority <= head.priority]
        most = max((num_running[sequence.caller] for sequence in lower), default=0)
        # Two more, not one: the victim's caller then still runs at least as many as the head's.
        if most >= num_own + 2:
            return [sequence for sequence in lower if num_running[sequence.caller] == most][-1]
        if num_own:
            return None
        # No caller runs more than its share, and the head's caller runs nothing: take turns.
        had_turn = [sequence for sequence in lower if self._has_had_turn(sequence)]
        return max(had_turn, key=self._num_turn_tokens, default=None)

    def _num_turn_tokens(self, sequence: Sequence) -> int:
        return len(sequence.output_ids) - self._running[sequence]

    def _has_had_turn(self, sequence: Sequence) -> bool:
        return self._num_turn_tokens(sequence) >= self._turn_tokens

    def _decode(self, block_manager: BlockManager) -> list[ScheduledChunk]:
        """Return a decode for each prefilled sequence; preempt some if blocks run out."""
        chunks = []
        for sequence in tuple(self._running):
            if sequence.num_uncomputed_tokens > 1 or sequence.state is not SequenceState.RUNNING:
                continue
            table = sequence.block_table
            num_missing = block_manager.num_missing_blocks(table, sequence.num_tokens)
            while num_missing and num_missing > block_manager.num_free_blocks:
                self._preempt(block_manager, self._youngest_of_most())
                if sequence.state is not SequenceState.RUNNING:
                    break
            else:
                if num_missing:
                    block_manager.allocate(table, sequence.num_tokens)
                chunks.append(_chunk(sequence, 1))
        # A later sequence of the loop may have preempted an earlier one.
        return [chunk for chunk in chunks if chunk.sequence.state is SequenceState.RUNNING]

    def _youngest_of_most(self) -> Sequence:
        """Return the youngest sequence of the callers that run most."""
        num_running = Counter(sequence.caller for sequence in self._running)
        most = max(num_running.values())
        return next(each for each in reversed(self._running) if num_running[each.caller] == most)

    def _prefill(self, block_manager: BlockManager, budget: int) -> list[ScheduledChunk]:
        """Return chunks of prompts within the budget, callers that were served least first.

        With equal sort keys, prompts in progress go before new ones.
        """
        if not budget:
            return []
        chunks: list[ScheduledChunk] = []
        started: list[Sequence] = []
        reading = [each for each in self._running if each.num_uncomputed_tokens > 1]
        reading.sort(key=self._queue.sort_key, reverse=True)  # the next one is last: pop()
        candidates = self._candidates(block_manager, tuple(reading))
        candidate = next(candidates, None)
        while budget and (reading or candidate is not None):
            if candidate is None or (
                reading and self._queue.sort_key(reading[-1]) <= self._queue.sort_key(candidate[0])
            ):
                sequence = reading.pop()
            else:
                sequence, prefix = candidate
                # Allocate the whole prompt now, so that its later chunks cannot run out of blocks.
                block_manager.share_prefix(sequence.block_table, prefix)
                block_manager.allocate(sequence.block_table, sequence.num_tokens)
                sequence.num_computed_tokens = len(prefix.block_ids) * block_manager.block_size
                self._run(sequence)
                started.append(sequence)
                candidate = next(candidates, None)
            chunks.append(_chunk(sequence, min(sequence.num_uncomputed_tokens, budget)))
            budget -= chunks[-1].num_tokens
        for sequence in started:  # only now: the queue must not change while it is iterated
            self._queue.start(sequence)
        return chunks

    def _candidates(
        self, block_manager: BlockManager, reading: SequenceOf[Sequence]
    ) -> Iterator[tuple[Sequence, Prefix]]:
        """Yield waiting sequences that can start, each with its cached prefix.

        Start each one before asking for the next: its blocks count.
        """
        if not len(self._queue) or len(self._running) == self._max_num_seqs:
            return
        # Blocks that a running sequence is about to fill. A waiting sequence that needs the same
        # block waits for the prefix hit instead of computing the block a second time.
        expected = {
            block_manager.next_key(
                each.token_ids, each.block_table.num_cached_blocks, each.block_table.node
            )
            for each in reading
        } - {None}
        num_skipped = 0
        for sequence in self._queue:
            prefix = _find_prefix(block_manager, sequence)
            if prefix.next_key in expected:
                num_skipped += 1
                if num_skipped == _MAX_SKIPPED:
                    return
                continue
            # Do not try smaller ones behind it: they would starve a long prompt.
            if not self._has_room(block_manager, sequence, prefix):
                return
            yield sequence, prefix
            if len(self._running) == self._max_num_seqs:
                return
            if prefix.next_key is not None:
                expected.add(prefix.next_key)

    def _fits(self, block_manager: BlockManager, sequence: Sequence) -> bool:
        if len(self._running) == self._max_num_seqs:
            return False
        return self._has_room(block_manager, sequence, _find_prefix(block_manager, sequence))

    def _has_room(self, block_manager: BlockManager, sequence: Sequence, prefix: Prefix) -> bool:
        """Whether the cache has room for the whole sequence, and a spare block per running one.

        Without spare blocks, a sequence would be started only to be preempted at once.
        """
        num_needed = block_manager.num_blocks_for(sequence.num_tokens) - len(prefix.block_ids)
        num_free = block_manager.num_free_blocks - block_manager.num_free_in(prefix)
        return num_needed + len(self._running) <= num_free

    def _run(self, sequence: Sequence) -> None:
        sequence.move_to(SequenceState.RUNNING)
        self._running[sequence] = len(sequence.output_ids)

    def _preempt(
        self, block_manager: BlockManager, sequence: Sequence, *, behind: Sequence | None = None
    ) -> None:
        self.num_preemptions += 1
        block_manager.free(sequence.block_table)
        sequence.num_computed_tokens = 0
        sequence.move_to(SequenceState.WAITING)
        del self._running[sequence]
        self._queue.requeue(sequence, behind=behind)


def _chunk(sequence: Sequence, num_tokens: int) -> ScheduledChunk:
    return ScheduledChunk(sequence, sequence.num_computed_tokens, num_tokens)


def _find_prefix(block_manager: BlockManager, sequence: Sequence) -> Prefix:
    """Return the cached prefix of a sequence; empty if it needs logits for its whole prompt."""
    if sequence.wants_prompt_logprobs:
        return EMPTY_PREFIX
    return block_manager.find_prefix(sequence.token_ids)
