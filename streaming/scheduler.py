"""Which sequences run in the next step: first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from streaming.backend import Batch, Chunk
from streaming.sequence import Sequence, SequenceState


class Scheduler:
    """Holds every live sequence, in the order of arrival.

    Args:
        max_num_seqs: most sequences in one batch.
    """

    def __init__(self, *, max_num_seqs: int) -> None:
        assert max_num_seqs > 0
        self._max_num_seqs = max_num_seqs
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._waiting

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)

    def schedule(self) -> Batch | None:
        """Return the next step's work, or None when there is none.

        Each chunk holds everything of its sequence that the model has not seen: the whole prompt
        at first, then the newest token.
        """
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting.popleft()
            sequence.move_to(SequenceState.RUNNING)
            self._running.append(sequence)
        if not self._running:
            return None
        return Batch(
            tuple(
                Chunk(
                    sequence,
                    start=sequence.num_computed_tokens,
                    num_tokens=sequence.num_tokens - sequence.num_computed_tokens,
                )
                for sequence in self._running
            )
        )
