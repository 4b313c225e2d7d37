"""Who follows which open log, and how long one goes on that nobody follows any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from streaming.log.generation import Generation


class Timer(Protocol):
    def cancel(self) -> None: ...


class Subscribers:
    """Counts the followers of each log; the last one that leaves starts the log's grace.

    Args:
        cancel: ends a generation; called when its grace is over.
        set_detached: called with a generation's id when its grace begins, and when somebody follows
            it again.
        call_later: calls back after so many seconds, on the thread that calls this object.
    """

    def __init__(
        self,
        *,
        cancel: Callable[[Generation], None],
        set_detached: Callable[[str, bool], None],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._cancel = cancel
        self._set_detached = set_detached
        self._call_later = call_later
        self._counts: Counter[str] = Counter()
        self._grace_timers: dict[str, Timer] = {}

    @property
    def in_grace(self) -> set[str]:
        """Ids of the open generations that go on for someone who may come back."""
        return set(self._grace_timers)

    def add(self, generation: Generation) -> None:
        """Count one more follower."""
        generation_id = generation.generation_id
        if self.end_grace(generation_id):
            self._set_detached(generation_id, False)
        self._counts[generation_id] += 1

    def remove(self, generation: Generation, *, grace_s: float) -> None:
        """Count one less; an open log without any is cancelled after `grace_s` seconds."""
        generation_id = generation.generation_id
        self._counts[generation_id] -= 1
        if self._counts[generation_id]:
            return
        del self._counts[generation_id]
        if generation.is_ended:
            return
        if not grace_s:
            self._cancel(generation)
            return

        def grace_is_over() -> None:
            del self._grace_timers[generation_id]
            self._cancel(generation)

        self._set_detached(generation_id, True)
        self._grace_timers[generation_id] = self._call_later(grace_s, grace_is_over)

    def end_grace(self, generation_id: str) -> bool:
        """Stop the time of a grace, and return whether there was one."""
        timer = self._grace_timers.pop(generation_id, None)
        if timer is None:
            return False
        timer.cancel()
        return True

    def end_all_graces(self) -> None:
        for generation_id in self.in_grace:
            self.end_grace(generation_id)
