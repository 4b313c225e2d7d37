"""Limits REST requests: how many each caller may make a second, and have open at once."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.websocket.protocol.rate_limiter import MessageRateLimiter

MAX_CALLERS = 1024
"""Rate limits that are kept; the least recently used is dropped."""


class RequestLimiter:
    """A token bucket and a count of open requests for each caller.

    Args:
        max_open_requests: open requests of one caller; a streamed response is open until its end.
        max_requests_per_s: average rate of one caller.
        max_burst_requests: requests that one caller may make at once.
        max_callers: callers whose rate is kept.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_open_requests: int,
        max_requests_per_s: float,
        max_burst_requests: float,
        max_callers: int = MAX_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_open_requests = max_open_requests
        self._max_requests_per_s = max_requests_per_s
        self._max_burst_requests = max_burst_requests
        self._max_callers = max_callers
        self._clock = clock
        self._buckets: OrderedDict[str, MessageRateLimiter] = OrderedDict()
        self._num_open: Counter[str] = Counter()

    def __len__(self) -> int:
        """The number of callers with a kept rate or an open request."""
        return len(self._buckets.keys() | self._num_open.keys())

    def is_full_for(self, caller: str) -> bool:
        """Return whether the caller has reached its number of open requests."""
        return self._num_open[caller] >= self._max_open_requests

    @contextmanager
    def open(self, caller: str) -> Iterator[None]:
        """Count a request as open while the block runs."""
        self._num_open[caller] += 1
        try:
            yield
        finally:
            self._num_open[caller] -= 1
            if not self._num_open[caller]:
                del self._num_open[caller]

    def take(self, caller: str) -> float:
        """Count a request; return 0 if it is allowed, else the seconds until the next one is."""
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = self._buckets[caller] = MessageRateLimiter(
                max_messages_per_s=self._max_requests_per_s,
                max_burst_messages=self._max_burst_requests,
            )
            if len(self._buckets) > self._max_callers:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(caller)
        return bucket.refused_for_s(now=self._clock())
