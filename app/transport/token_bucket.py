"""Rate limit for one connection: a token bucket whose balance may be negative."""

from __future__ import annotations


class TokenBucket:
    """Counts what a connection has sent and returns how long to wait before reading more.

    Bytes are counted after they have been read, so they cannot be refused. The bucket goes into
    debt instead, and the reader waits until the debt is paid. The caller passes in the time, in
    monotonic seconds.

    Args:
        per_s: refill rate, in units a second.
        max_burst: capacity, in units; the bucket starts full.
    """

    def __init__(self, *, per_s: float, max_burst: float) -> None:
        assert per_s > 0
        self._per_s = per_s
        self._max_burst = max_burst
        self._balance = max_burst
        self._updated_at: float | None = None

    def take(self, amount: float, *, now: float) -> float:
        """Take `amount` out and return the seconds until the balance is no longer negative."""
        if self._updated_at is not None:
            gained = max(0.0, now - self._updated_at) * self._per_s
            self._balance = min(self._max_burst, self._balance + gained)
        self._updated_at = now
        self._balance -= amount
        return max(0.0, -self._balance / self._per_s)
