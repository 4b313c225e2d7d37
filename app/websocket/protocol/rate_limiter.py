"""A token bucket that limits messages; callers pass in the time."""

from __future__ import annotations


class MessageRateLimiter:
    """Allows a burst of messages, and a steady rate over time.

    Args:
        max_messages_per_s: refill rate of the bucket.
        max_burst_messages: capacity of the bucket, which starts full.
    """

    def __init__(self, *, max_messages_per_s: float, max_burst_messages: float) -> None:
        assert max_messages_per_s > 0
        assert max_burst_messages >= 1
        self._max_messages_per_s = max_messages_per_s
        self._max_burst_messages = max_burst_messages
        self._allowance = max_burst_messages
        self._updated_at: float | None = None

    def refused_for_s(self, *, now: float) -> float:
        """Count a message; return 0 if it is allowed, else the seconds to wait before a retry.

        A refused message takes nothing from the bucket, so a retry after that time is allowed.
        """
        if self._updated_at is not None:
            gained = (now - self._updated_at) * self._max_messages_per_s
            self._allowance = min(self._max_burst_messages, self._allowance + gained)
        self._updated_at = now
        if self._allowance >= 1:
            self._allowance -= 1
            return 0.0
        return (1 - self._allowance) / self._max_messages_per_s
