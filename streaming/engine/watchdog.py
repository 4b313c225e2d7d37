"""Looks from the event loop at the engine's thread, which may be stuck or dead.

A stuck thread carries nothing out: no cancel, no deadline, no shutdown. What it should have ended
and has not, the loop ends. A thread that is stuck for good is a failure of the engine; only a new
process helps then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from streaming.errors import StreamingError
from streaming.log.generation import Failed, Finished, FinishReason, Generation

PATIENCE_S = 1.0
"""The loop ends a log that the engine's thread should have ended so long ago, if the thread has
been in one step for so long."""


class Heartbeat(Protocol):
    """What the watchdog sees of the engine's thread."""

    @property
    def is_alive(self) -> bool: ...

    @property
    def busy_since(self) -> float | None:
        """When its present step began, in monotonic seconds; None while it has nothing to do."""


@dataclass(frozen=True, slots=True)
class _Due:
    generation: Generation
    due_at: float
    error: StreamingError | None
    """None for a cancel."""


class Watchdog:
    """Knows when logs have to end at the latest, and ends those that the engine forgets.

    Args:
        thread: the engine's.
        step_timeout_s: a step that takes longer hangs.
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
        self._dues: dict[str, _Due] = {}

    def expect_end(
        self, generation: Generation, *, due_at: float, error: StreamingError | None = None
    ) -> None:
        """Take that a log ends by then: with `error`, or cancelled; an earlier time is kept."""
        known = self._dues.get(generation.generation_id)
        if known is None or due_at < known.due_at:
            self._dues[generation.generation_id] = _Due(generation, due_at, error)

    def forget(self, generation: Generation) -> None:
        """Forget a log that has ended."""
        self._dues.pop(generation.generation_id, None)

    def failure(self) -> str | None:
        """Return why the engine can no longer be relied on; None while it can."""
        if not self._thread.is_alive:
            return "its thread has ended"
        if (busy_s := self._busy_s()) >= self._step_timeout_s:
            return f"one step has taken {busy_s:.0f} s, of at most {self._step_timeout_s:g}"
        return None

    def end_overdue(self) -> list[Generation]:
        """End the logs that a stuck thread should have ended, and return them."""
        if self._busy_s() < PATIENCE_S:
            return []
        now = self._clock()
        late = [due for due in self._dues.values() if due.due_at + PATIENCE_S <= now]
        for due in late:
            del self._dues[due.generation.generation_id]
        return [due.generation for due in late if due.generation.end(_ending(due, at=now))]

    def _busy_s(self) -> float:
        busy_since = self._thread.busy_since
        return 0.0 if busy_since is None else self._clock() - busy_since


def _ending(due: _Due, *, at: float) -> Finished | Failed:
    return Finished(FinishReason.CANCELLED, at) if due.error is None else Failed(due.error, at)
