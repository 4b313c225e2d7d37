"""Watches the engine thread from the event loop, and ends overdue logs while it is stuck.

A stuck thread handles no cancel, deadline or shutdown, so the event loop ends the logs that the
thread should have ended. A thread that stays stuck is an engine failure, and the process must be
restarted. `AsyncEngine` polls the watchdog on a timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from streaming.errors import StreamingError
from streaming.log.generation import Failed, Finished, FinishReason, Generation

STUCK_AFTER_S = 1.0
"""The event loop ends a log that is overdue by this time, if the engine thread has also been in one
step for this time."""


class Heartbeat(Protocol):
    """What the watchdog reads of the engine thread."""

    @property
    def is_alive(self) -> bool:
        """Whether the thread has started and not ended."""

    @property
    def busy_since(self) -> float | None:
        """When its current step started, in monotonic seconds; None while it is idle."""


@dataclass(frozen=True, slots=True)
class _Deadline:
    generation: Generation
    due_at: float
    error: StreamingError | None
    """None for a cancelled log."""


class Watchdog:
    """Keeps a deadline for each log, and ends the logs that a stuck engine thread leaves open.

    Args:
        thread: the engine thread.
        step_timeout_s: longest time for a step; beyond it the engine has failed.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        thread: Heartbeat,
        *,
        step_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._thread = thread
        self._step_timeout_s = step_timeout_s
        self._clock = clock
        self._deadlines: dict[str, _Deadline] = {}

    def expect_end(
        self, generation: Generation, *, due_at: float, error: StreamingError | None = None
    ) -> None:
        """Set when a log must have ended: with `error`, or else as cancelled.

        An earlier deadline of the same log is kept.
        """
        current = self._deadlines.get(generation.generation_id)
        if current is None or due_at < current.due_at:
            self._deadlines[generation.generation_id] = _Deadline(generation, due_at, error)

    def remove(self, generation: Generation) -> None:
        """Remove the deadline of a log that has ended."""
        self._deadlines.pop(generation.generation_id, None)

    def failure_reason(self) -> str | None:
        """Return why the engine has failed; None while it works."""
        if not self._thread.is_alive:
            return "its thread has ended"
        if (busy_s := self._busy_s()) >= self._step_timeout_s:
            return f"one step has taken {busy_s:.0f} s (limit {self._step_timeout_s:g} s)"
        return None

    def end_overdue(self) -> list[Generation]:
        """End the overdue logs if the thread is stuck, and return them."""
        if self._busy_s() < STUCK_AFTER_S:
            return []
        now = self._clock()
        overdue = [each for each in self._deadlines.values() if each.due_at + STUCK_AFTER_S <= now]
        for each in overdue:
            del self._deadlines[each.generation.generation_id]
        return [each.generation for each in overdue if each.generation.end(_ending(each, at=now))]

    def _busy_s(self) -> float:
        busy_since = self._thread.busy_since
        return 0.0 if busy_since is None else self._clock() - busy_since


def _ending(deadline: _Deadline, *, at: float) -> Finished | Failed:
    if deadline.error is None:
        return Finished(FinishReason.CANCELLED, at)
    return Failed(deadline.error, at)
