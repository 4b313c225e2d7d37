"""Which logs can still be read: all that are open, and the ended ones for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from streaming.errors import GenerationNotFound
from streaming.generation import Generation


class GenerationStore:
    """Open logs, and ended ones up to an age and a size; the oldest ended log goes first.

    Args:
        retention_s: how long an ended log stays readable.
        retention_bytes: how much memory the ended logs may take together.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        retention_s: float,
        retention_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retention_s = retention_s
        self._retention_bytes = retention_bytes
        self._clock = clock
        self._open: dict[str, Generation] = {}
        self._ended: OrderedDict[str, Generation] = OrderedDict()
        self.num_ended_bytes = 0

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_ended(self) -> int:
        return len(self._ended)

    @property
    def open_generations(self) -> tuple[Generation, ...]:
        return tuple(self._open.values())

    def add(self, generation: Generation) -> None:
        assert generation.generation_id not in self._open
        self._open[generation.generation_id] = generation

    def settle(self, generation: Generation) -> None:
        """Move a log that has ended to the ended ones, and drop what is too old or too much."""
        assert generation.is_ended
        if self._open.pop(generation.generation_id, None) is not None:
            self._ended[generation.generation_id] = generation
            self.num_ended_bytes += generation.num_bytes
        self.evict()

    def find(self, generation_id: str, *, owner: str) -> Generation:
        """Return the log.

        Raises:
            GenerationNotFound: it never was, has expired, or is someone else's.
        """
        self.evict()
        generation = self._open.get(generation_id) or self._ended.get(generation_id)
        if generation is None or generation.owner != owner:
            raise GenerationNotFound(generation_id=generation_id)
        return generation

    def evict(self) -> None:
        """Drop ended logs over the byte cap or past their time."""
        oldest_kept_at = self._clock() - self._retention_s
        while self._ended:
            generation = next(iter(self._ended.values()))
            assert generation.outcome is not None
            is_expired = generation.outcome.at < oldest_kept_at
            if not is_expired and self.num_ended_bytes <= self._retention_bytes:
                break
            del self._ended[generation.generation_id]
            self.num_ended_bytes -= generation.num_bytes
