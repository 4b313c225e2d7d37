"""Which tokens run in the next step.

A step takes one token for each sequence that decodes and, with what is left of its budget, chunks
of prompts, oldest first. A sequence runs only while the cache has room for it; when the room is
used up, the youngest gives its place back and is computed again later.
"""

from __future__ import annotations

from collections.abc import Iterator

from streaming.backend import Batch, Chunk
from streaming.fair_queue import FairQueue
from streaming.kv_cache import NO_PREFIX, KVCache, Prefix
from streaming.sequence import Sequence, SequenceState
from streaming.step_pacer import StepPacer


class Scheduler:
    """Holds every live sequence.

    Args:
        max_num_seqs: most sequences in one batch.
        cache: blocks for keys and values. Without one the runner looks after itself: it gets each
            prompt whole, and no sequence is ever taken out of it.
        pacer: sizes the chunks of prompts.
    """

    def __init__(
        self, *, max_num_seqs: int, cache: KVCache | None = None, pacer: StepPacer | None = None
    ) -> None:
        assert max_num_seqs > 0
        assert cache is None or pacer is not None, "chunks are sized by a pacer"
        self._max_num_seqs = max_num_seqs
        self._cache = cache
        self._pacer = pacer
        self._queue = FairQueue()
        self._running: list[Sequence] = []
        self.num_preemptions = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._queue

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
            self._running.remove(sequence)
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
        if self._cache is None or self._pacer is None:
            self._admit_whole()
            chunks = [
                _chunk(sequence, sequence.num_uncomputed_tokens) for sequence in self._running
            ]
        else:
            self._make_way(self._cache)
            chunks = self._decode(self._cache)
            budget = self._pacer.prefill_budget(num_decodes=len(chunks))
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
        if self._pacer is not None:
            num_decodes = sum(chunk.is_decode for chunk in batch.chunks)
            self._pacer.observe(
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
        for sequence in self._queue:
            if len(self._running) == self._max_num_seqs:
                return
            self._start(sequence)

    # With one.

    def _make_way(self, cache: KVCache) -> None:
        """Take sequences whose clients are gone out of the batch where others need their places."""
        for sequence in self._queue:
            detached = [running for running in self._running if running.is_detached]
            if sequence.is_detached or not detached or self._fits(cache, sequence):
                return
            self._preempt(cache, detached[-1])

    def _decode(self, cache: KVCache) -> list[Chunk]:
        """Return a token for each sequence whose prompt is read; the youngest give way for room."""
        chunks = []
        for sequence in tuple(self._running):
            if sequence.num_uncomputed_tokens > 1 or sequence.state is not SequenceState.RUNNING:
                continue
            while cache.num_missing_blocks(sequence.block_table, sequence.num_tokens) > (
                cache.num_free_blocks
            ):
                self._preempt(cache, self._running[-1])
                if sequence.state is not SequenceState.RUNNING:
                    break
            else:
                cache.grow(sequence.block_table, sequence.num_tokens)
                chunks.append(_chunk(sequence, 1))
        return chunks

    def _prefill(self, cache: KVCache, budget: int) -> list[Chunk]:
        """Return chunks of prompts that are being read, then of new ones, within the budget."""
        chunks = []
        for sequence in self._running:
            if budget and (num_left := sequence.num_uncomputed_tokens) > 1:
                chunks.append(_chunk(sequence, min(num_left, budget)))
                budget -= chunks[-1].num_tokens
        # Blocks that a running sequence is about to fill: who needs the same ones waits for them.
        expected = {
            cache.next_key(
                running.token_ids, running.block_table.num_known_blocks, running.block_table.node
            )
            for running in self._running
            if running.num_uncomputed_tokens > 1
        } - {None}
        for sequence in self._queue:
            if not budget or len(self._running) == self._max_num_seqs:
                break
            prefix = _find_prefix(cache, sequence)
            if prefix.next_key in expected:
                continue
            if not self._has_room(cache, sequence, prefix):
                break
            cache.share(sequence.block_table, prefix)
            cache.grow(sequence.block_table, sequence.num_tokens)
            sequence.num_computed_tokens = len(prefix.block_ids) * cache.block_size
            self._start(sequence)
            if prefix.next_key is not None:
                expected.add(prefix.next_key)
            chunks.append(_chunk(sequence, min(sequence.num_uncomputed_tokens, budget)))
            budget -= chunks[-1].num_tokens
        return chunks

    def _fits(self, cache: KVCache, sequence: Sequence) -> bool:
        if len(self._running) == self._max_num_seqs:
            return False
        return self._has_room(cache, sequence, _find_prefix(cache, sequence))

    def _has_room(self, cache: KVCache, sequence: Sequence, prefix: Prefix) -> bool:
        """Whether the cache holds the whole sequence, with a block to spare for each that runs.

        Without the spare ones a sequence would come in only to be taken out again at once.
        """
        num_needed = cache.num_blocks_for(sequence.num_tokens) - len(prefix.block_ids)
        num_free = cache.num_free_blocks - cache.num_taken_by(prefix)
        return num_needed + len(self._running) <= num_free

    def _start(self, sequence: Sequence) -> None:
        self._queue.remove(sequence)
        sequence.move_to(SequenceState.RUNNING)
        self._running.append(sequence)

    def _preempt(self, cache: KVCache, sequence: Sequence) -> None:
        self.num_preemptions += 1
        cache.release(sequence.block_table)
        sequence.num_computed_tokens = 0
        sequence.move_to(SequenceState.WAITING)
        self._running.remove(sequence)
        self._queue.put_back(sequence)


def _chunk(sequence: Sequence, num_tokens: int) -> Chunk:
    return Chunk(sequence, start=sequence.num_computed_tokens, num_tokens=num_tokens)


def _find_prefix(cache: KVCache, sequence: Sequence) -> Prefix:
    """Return what the cache knows of a sequence; nothing where all its logits are wanted."""
    if sequence.wants_prompt_logprobs:
        return NO_PREFIX
    return cache.find_prefix(sequence.token_ids)
