"""The clock by which stored responses grow old, which does not follow a jump of the wall clock.

A wall clock can be wrong: a machine without a battery starts in 1970, an operator or an NTP server
sets it. If a response expired by the wall clock, a jump of 31 days would delete all of them. So age
is counted: while the server runs, by the monotonic clock; over a time that it did not see (it was
off, or the machine slept), by the wall clock, and then by `MAX_GAP_S` at most. The count is kept in
the store and shared by the processes that use it.

The count begins at the wall clock's time, so it reads like unix seconds, and it is never ahead of
the wall clock because of a jump, only behind: an error keeps a response for longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MAX_GAP_S = 24 * 3600.0
"""The most that responses age over one time that no server has seen."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """What is kept of the clock.

    Attributes:
        counted_s: the count, in seconds; about unix time.
        wall_s: the latest time that the wall clock has shown, in unix seconds.
    """

    counted_s: float
    wall_s: float


class RetentionClock:
    """Counts the age of what is stored.

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
        """Return the first reading of a store that has none.

        Args:
            newest_s: when its newest response was written, by a wall clock. The count begins near
                it, so that a wall clock that is wrong just now expires nothing.
        """
        wall_s = self._wall()
        counted_s = wall_s if newest_s is None else min(wall_s, newest_s + MAX_GAP_S)
        return ClockReading(counted_s, wall_s)

    def advance(self, kept: ClockReading) -> ClockReading:
        """Count the time since the last call, and return what is to be kept.

        Args:
            kept: the reading in the store, which another process may have moved on.
        """
        now, wall_s = self._monotonic(), self._wall()
        elapsed_s = 0.0 if self._counted_s is None else now - self._read_at
        gap_s = min(max(0.0, wall_s - kept.wall_s - elapsed_s), MAX_GAP_S)
        before_s = kept.counted_s if self._counted_s is None else self._counted_s
        self._counted_s = max(kept.counted_s, before_s + elapsed_s + gap_s)
        self._read_at = now
        return ClockReading(self._counted_s, max(kept.wall_s, wall_s))

    @property
    def now_s(self) -> float:
        """The count; the wall clock's time as long as no store has been opened."""
        if self._counted_s is None:
            return self._wall()
        return self._counted_s + self._monotonic() - self._read_at
