"""Counts the subscribers of each open log, and cancels a log that stays without any.

Owned by the async engine, which adds a subscriber for each `subscribe` block. A log without
subscribers continues for a grace period, in which a disconnected client can resume it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from streaming.log.generation import Generation


class Timer(Protocol):
    """A scheduled call, such as an `asyncio.TimerHandle`."""

    def cancel(self) -> None:
        """Drop the call."""


class Subscribers:
    """Counts the subscribers of each log; the grace period starts when the last one leaves.

    Args:
        cancel: ends a generation; called when its grace period is over.
        set_detached: called with a generation's id and True when its grace period starts, and with
            False when a client subscribes again.
        call_later: schedules a call after a delay in seconds, on the thread that uses this object.
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
        """Ids of the open generations that have no subscriber and are in their grace period."""
        return set(self._grace_timers)

    def add(self, generation: Generation) -> None:
        """Count one more subscriber, and end the grace period if there is one."""
        generation_id = generation.generation_id
        if self.end_grace(generation_id):
            self._set_detached(generation_id, False)
        self._counts[generation_id] += 1

    def remove(self, generation: Generation, *, grace_s: float) -> None:
        """Count one subscriber less; after the last one, cancel an open log in `grace_s` seconds.

        With `grace_s` of 0 the log is cancelled at once.
        """
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

        def cancel_after_grace() -> None:
            del self._grace_timers[generation_id]
            self._cancel(generation)

        self._set_detached(generation_id, True)
        self._grace_timers[generation_id] = self._call_later(grace_s, cancel_after_grace)

    def end_grace(self, generation_id: str) -> bool:
        """Stop the timer of a grace period; return whether one was running."""
        timer = self._grace_timers.pop(generation_id, None)
        if timer is None:
            return False
        timer.cancel()
        return True

    def end_all_graces(self) -> None:
        """Stop the timers of all grace periods."""
        for generation_id in self.in_grace:
            self.end_grace(generation_id)
