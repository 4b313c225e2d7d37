"""How much a connection may bring a second: a token bucket that may go into debt."""

from __future__ import annotations


class Allowance:
    """Counts what has come already, and says how long to wait before more is read.

    Unlike a limiter that refuses, it cannot turn back what is in memory, so the wait is what pays
    for it. Time is passed in as monotonic seconds.

    Args:
        per_s: what the bucket gains in a second.
        max_burst: what a full bucket holds.
    """

    def __init__(self, *, per_s: float, max_burst: float) -> None:
        assert per_s > 0
        self._per_s = per_s
        self._max_burst = max_burst
        self._left = max_burst
        self._updated_at: float | None = None

    def take(self, amount: float, *, now: float) -> float:
        """Count `amount` and return how many seconds to wait until it is paid for."""
        if self._updated_at is not None:
            gained = max(0.0, now - self._updated_at) * self._per_s
            self._left = min(self._max_burst, self._left + gained)
        self._updated_at = now
        self._left -= amount
        return max(0.0, -self._left / self._per_s)
