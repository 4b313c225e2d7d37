"""Which tokens run in the next step.

A step takes one token for each sequence that decodes and, with what is left of its budget, chunks
of prompts: of callers that were served least first, and of one caller the oldest first. A sequence
runs only while the cache has room for it; when the room is used up, the youngest of the caller that
runs most gives its place back and is computed again later.

Places in the batch are shared as tokens are. When none is free, the sequence that is next takes one
back:

* from a sequence that nobody follows;
* from the caller that runs most, if that still runs as many as the newcomer's caller afterwards;
* where every caller runs one, and the newcomer's none: from one that has had its turn, which is
  `turn_tokens` new tokens. So more callers than there are places take turns.

It takes none from a higher priority. Who was preempted goes first among its caller's sequences, and
what it says is the same: draws are by seed and position. A runner that has a cache of its own
cannot be preempted: there, a caller waits until one that runs has ended, and is next then.

A step looks at waiting sequences only where there is a place, and then at few of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from itertools import islice

from streaming.backend import Batch, Chunk
from streaming.scheduling.block_manager import NO_PREFIX, BlockManager, Prefix
from streaming.scheduling.fair_queue import FairQueue
from streaming.scheduling.prefill_budget import PrefillBudget
from streaming.sequence import Sequence, SequenceState

_TURN_TOKENS = 256
"""A turn's worth of new tokens. A change of turns may cost a prompt that is read again."""
_MAX_SKIPPED = 16
"""Waiting sequences that a step looks at in vain, because their prefix is being computed."""


class Scheduler:
    """Holds every live sequence.

    Args:
        max_num_seqs: most sequences in one batch.
        cache: blocks for keys and values. Without one the runner looks after itself: it gets each
            prompt whole, and no sequence is ever taken out of it.
        prefill_budget: sizes the chunks of prompts.
        turn_tokens: new tokens after which a sequence gives its place to a caller that has none.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        cache: BlockManager | None = None,
        prefill_budget: PrefillBudget | None = None,
        turn_tokens: int = _TURN_TOKENS,
    ) -> None:
        assert max_num_seqs > 0
        assert turn_tokens > 0
        assert cache is None or prefill_budget is not None, "chunks are sized by a prefill_budget"
        self._max_num_seqs = max_num_seqs
        self._cache = cache
        self._prefill_budget = prefill_budget
        self._turn_tokens = turn_tokens
        self._queue = FairQueue()
        self._running: dict[Sequence, int] = {}
        """In the order in which they began; with each, its output tokens at that time."""
        self.num_preemptions = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._queue

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Waiting sequences, the next one first."""
        return tuple(self._queue)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Running sequences, the one that began first in front."""
        return tuple(self._running)

    def add(self, sequence: Sequence) -> None:
        self._queue.enter(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended."""
        if sequence in self._running:
            del self._running[sequence]
        else:
            self._queue.remove(sequence)
        self._queue.leave(sequence)
        if self._cache is not None:
            self._cache.release(sequence.block_table)

    def set_detached(self, sequence: Sequence, *, is_detached: bool) -> None:
        """Take that nobody follows a sequence's log, or that somebody does again."""
        self._queue.set_detached(sequence, is_detached=is_detached)

    def schedule(self) -> Batch | None:
        """Return the next step's work, or None when there is none."""
        if self._cache is None or self._prefill_budget is None:
            self._admit_whole()
            chunks = [
                _chunk(sequence, sequence.num_uncomputed_tokens) for sequence in self._running
            ]
        else:
            self._make_way(self._cache)
            chunks = self._decode(self._cache)
            budget = self._prefill_budget.prefill_budget(num_decodes=len(chunks))
            chunks += self._prefill(self._cache, budget)
        return Batch(tuple(chunks)) if chunks else None

    def advance(self, batch: Batch, *, duration_s: float) -> None:
        """Take that the batch has run: its tokens are in the cache now.

        Called before the step's new tokens are appended: a chunk is a decode or yields a token by
        what was known of its sequence when it ran.
        """
        for chunk in batch.chunks:
            sequence = chunk.sequence
            sequence.num_computed_tokens = chunk.start + chunk.num_tokens
            self._queue.charge(sequence, num_tokens=chunk.num_tokens)
            if self._cache is not None:
                self._cache.commit(
                    sequence.block_table, sequence.token_ids, sequence.num_computed_tokens
                )
        if self._prefill_budget is not None:
            num_decodes = sum(chunk.is_decode for chunk in batch.chunks)
            self._prefill_budget.observe(
                num_decodes=num_decodes,
                num_prefill_tokens=batch.num_tokens - num_decodes,
                duration_s=duration_s,
            )

    def trust(self, sequence: Sequence) -> None:
        """Take that the model gave a sequence sound logits, and so sound keys and values."""
        if self._cache is not None:
            self._cache.trust(sequence.block_table)

    def forget(self, sequence: Sequence) -> None:
        """Take that the model's logits for a sequence are broken: share nothing that may be why.

        What is trusted stays: it gave sound logits before, to this sequence or to another.
        """
        if self._cache is not None:
            self._cache.forget(sequence.block_table)

    def check_integrity(self) -> None:
        """Assert that every block and every caller is accounted for."""
        self._queue.check_integrity(self._running)
        assert all(sequence.state is SequenceState.RUNNING for sequence in self._running)
        assert all(sequence.state is SequenceState.WAITING for sequence in self._queue)
        if self._cache is not None:
            assert not any(sequence.block_table.block_ids for sequence in self._queue)
            self._cache.check_integrity(sequence.block_table for sequence in self._running)

    # Without a cache of ours.

    def _admit_whole(self) -> None:
        num_free = self._max_num_seqs - len(self._running)
        if num_free and len(self._queue):
            for sequence in tuple(islice(self._queue, num_free)):
                self._queue.take(sequence)
                self._run(sequence)

    # With one.

    def _make_way(self, cache: BlockManager) -> None:
        """Take places back for whoever is next, where none is free and it has a right to one."""
        while len(self._queue) and self._may_yield():
            head = self._queue.head
            assert head is not None
            if head.is_detached or (victim := self._who_yields(head)) is None:
                return
            if self._fits(cache, head):
                return
            self._preempt(cache, victim, behind=head)

    def _may_yield(self) -> bool:
        """Whether a place could be taken from anybody; spares a look at the queue."""
        owners = {sequence.caller for sequence in self._running}
        return len(owners) < len(self._running) or any(
            sequence.is_detached or self._has_had_turn(sequence) for sequence in self._running
        )

    def _who_yields(self, head: Sequence) -> Sequence | None:
        """Return who gives its place to `head`, if anybody has to."""
        detached = [sequence for sequence in self._running if sequence.is_detached]
        if detached:
            return detached[-1]
        num_running = Counter(sequence.caller for sequence in self._running)
        num_own = num_running[head.caller]
        lower = [sequence for sequence in self._running if sequence.priority <= head.priority]
        most = max((num_running[sequence.caller] for sequence in lower), default=0)
        if most >= num_own + 2:
            return [sequence for sequence in lower if num_running[sequence.caller] == most][-1]
        if num_own:
            return None
        had_turn = [sequence for sequence in lower if self._has_had_turn(sequence)]
        return max(had_turn, key=self._num_turn_tokens, default=None)

    def _num_turn_tokens(self, sequence: Sequence) -> int:
        return len(sequence.output_ids) - self._running[sequence]

    def _has_had_turn(self, sequence: Sequence) -> bool:
        return self._num_turn_tokens(sequence) >= self._turn_tokens

    def _decode(self, cache: BlockManager) -> list[Chunk]:
        """Return a token for each sequence whose prompt is read; some give way for room."""
        chunks = []
        for sequence in tuple(self._running):
            if sequence.num_uncomputed_tokens > 1 or sequence.state is not SequenceState.RUNNING:
                continue
            while cache.num_missing_blocks(sequence.block_table, sequence.num_tokens) > (
                cache.num_free_blocks
            ):
                self._preempt(cache, self._youngest_of_most())
                if sequence.state is not SequenceState.RUNNING:
                    break
            else:
                cache.grow(sequence.block_table, sequence.num_tokens)
                chunks.append(_chunk(sequence, 1))
        # One that gave way after its turn in this loop is not in the step.
        return [chunk for chunk in chunks if chunk.sequence.state is SequenceState.RUNNING]

    def _youngest_of_most(self) -> Sequence:
        """Return the youngest sequence of the callers that run most."""
        num_running = Counter(sequence.caller for sequence in self._running)
        most = max(num_running.values())
        return next(each for each in reversed(self._running) if num_running[each.caller] == most)

    def _prefill(self, cache: BlockManager, budget: int) -> list[Chunk]:
        """Return chunks of prompts within the budget, those of callers served least first.

        With equal claims, prompts that are being read go before new ones.
        """
        if not budget:
            return []
        chunks: list[Chunk] = []
        started: list[Sequence] = []
        reading = [each for each in self._running if each.num_uncomputed_tokens > 1]
        reading.sort(key=self._queue.claim, reverse=True)  # the next one last
        newcomers = self._newcomers(cache, tuple(reading))
        newcomer = next(newcomers, None)
        while budget and (reading or newcomer is not None):
            if newcomer is None or (
                reading and self._queue.claim(reading[-1]) <= self._queue.claim(newcomer[0])
            ):
                sequence = reading.pop()
            else:
                sequence, prefix = newcomer
                cache.share(sequence.block_table, prefix)
                cache.grow(sequence.block_table, sequence.num_tokens)
                sequence.num_computed_tokens = len(prefix.block_ids) * cache.block_size
                self._run(sequence)
                started.append(sequence)
                newcomer = next(newcomers, None)
            chunks.append(_chunk(sequence, min(sequence.num_uncomputed_tokens, budget)))
            budget -= chunks[-1].num_tokens
        for sequence in started:  # only now: the queue is iterated until here
            self._queue.take(sequence)
        return chunks

    def _newcomers(
        self, cache: BlockManager, reading: SequenceOf[Sequence]
    ) -> Iterator[tuple[Sequence, Prefix]]:
        """Yield sequences that can begin, each with what the cache knows of it.

        Each is to be begun before the next one is asked for.
        """
        if not len(self._queue) or len(self._running) == self._max_num_seqs:
            return
        # Blocks that a running sequence is about to fill: who needs the same ones waits for them.
        expected = {
            cache.next_key(each.token_ids, each.block_table.num_known_blocks, each.block_table.node)
            for each in reading
        } - {None}
        num_skipped = 0
        for sequence in self._queue:
            prefix = _find_prefix(cache, sequence)
            if prefix.next_key in expected:
                num_skipped += 1
                if num_skipped == _MAX_SKIPPED:
                    return
                continue
            if not self._has_room(cache, sequence, prefix):
                return
            yield sequence, prefix
            if len(self._running) == self._max_num_seqs:
                return
            if prefix.next_key is not None:
                expected.add(prefix.next_key)

    def _fits(self, cache: BlockManager, sequence: Sequence) -> bool:
        if len(self._running) == self._max_num_seqs:
            return False
        return self._has_room(cache, sequence, _find_prefix(cache, sequence))

    def _has_room(self, cache: BlockManager, sequence: Sequence, prefix: Prefix) -> bool:
        """Whether the cache holds the whole sequence, with a block to spare for each that runs.

        Without the spare ones a sequence would come in only to be taken out again at once.
        """
        num_needed = cache.num_blocks_for(sequence.num_tokens) - len(prefix.block_ids)
        num_free = cache.num_free_blocks - cache.num_taken_by(prefix)
        return num_needed + len(self._running) <= num_free

    def _run(self, sequence: Sequence) -> None:
        sequence.move_to(SequenceState.RUNNING)
        self._running[sequence] = len(sequence.output_ids)

    def _preempt(
        self, cache: BlockManager, sequence: Sequence, *, behind: Sequence | None = None
    ) -> None:
        self.num_preemptions += 1
        cache.release(sequence.block_table)
        sequence.num_computed_tokens = 0
        sequence.move_to(SequenceState.WAITING)
        del self._running[sequence]
        self._queue.put_back(sequence, behind=behind)


def _chunk(sequence: Sequence, num_tokens: int) -> Chunk:
    return Chunk(sequence, start=sequence.num_computed_tokens, num_tokens=num_tokens)


def _find_prefix(cache: BlockManager, sequence: Sequence) -> Prefix:
    """Return what the cache knows of a sequence; nothing where all its logits are wanted."""
    if sequence.wants_prompt_logprobs:
        return NO_PREFIX
    return cache.find_prefix(sequence.token_ids)
