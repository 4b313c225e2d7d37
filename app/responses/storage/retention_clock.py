"""Measures the age of stored responses, independent of jumps of the wall clock.

A wall clock can be wrong: a machine without a battery starts in 1970, an operator or an NTP server
sets it. If responses expired by the wall clock, a jump of 31 days would delete them all. So their
age is counted by the monotonic clock while the server runs. Over a gap (the server was off, or the
machine slept) it is counted by the wall clock, up to `MAX_GAP_S`. The count is saved in the store
and shared by all processes that use it.

The count starts at the wall clock's time, so it reads like unix seconds. A jump can only make it
lag behind the wall clock, never run ahead: an error extends the retention.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MAX_GAP_S = 24 * 3600.0
"""Maximum age that responses gain over one gap in which no server ran."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The saved state of the clock.

    Attributes:
        counted_s: the count, in seconds; close to unix time.
        wall_s: the latest time of the wall clock, in unix seconds.
    """

    counted_s: float
    wall_s: float


class RetentionClock:
    """Counts the seconds by which stored responses age.

    Args:
        wall: unix seconds; may jump.
        monotonic: monotonic seconds of this process.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._counted_s: float | None = None
        self._read_at = monotonic()

    def begin(self, *, newest_s: float | None) -> ClockReading:
        """Return the first reading for a store that has none.

        Args:
            newest_s: when the store's newest response was written, by the wall clock of then. The
                count starts near it, so that a wall clock that is wrong now expires nothing.
        """
        wall_s = self._wall()
        counted_s = wall_s if newest_s is None else min(wall_s, newest_s + MAX_GAP_S)
        return ClockReading(counted_s, wall_s)

    def advance(self, saved: ClockReading) -> ClockReading:
        """Count the time since the last call, and return the reading to save.

        Args:
            saved: the reading in the store, which another process may have advanced.
        """
        now, wall_s = self._monotonic(), self._wall()
        elapsed_s = 0.0 if self._counted_s is None else now - self._read_at
        gap_s = min(max(0.0, wall_s - saved.wall_s - elapsed_s), MAX_GAP_S)
        before_s = saved.counted_s if self._counted_s is None else self._counted_s
        self._counted_s = max(saved.counted_s, before_s + elapsed_s + gap_s)
        self._read_at = now
        return ClockReading(self._counted_s, max(saved.wall_s, wall_s))

    @property
    def now_s(self) -> float:
        """The count in seconds; the wall clock's time before a store is opened."""
        if self._counted_s is None:
            return self._wall()
        return self._counted_s + self._monotonic() - self._read_at
