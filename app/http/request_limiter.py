"""How many REST requests each caller may make, and have open, as sockets have their limits."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.websocket.protocol.rate_limiter import MessageRateLimiter

MAX_CALLERS = 1024
"""Callers that are remembered; the one not seen for longest is forgotten."""


class RequestLimiter:
    """A bucket for each caller, and a count of what it has open.

    Args:
        max_open_requests: at once; an answer that streams is open until its end.
        max_requests_per_s: in the long run.
        max_burst_requests: at once.
        max_callers: that are remembered.
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
        """How many callers are remembered."""
        return len(self._buckets.keys() | self._num_open.keys())

    def is_full_for(self, caller: str) -> bool:
        """Whether the caller has as many requests open as one may."""
        return self._num_open[caller] >= self._max_open_requests

    @contextmanager
    def open(self, caller: str) -> Iterator[None]:
        """Count a request while the block runs."""
        self._num_open[caller] += 1
        try:
            yield
        finally:
            self._num_open[caller] -= 1
            if not self._num_open[caller]:
                del self._num_open[caller]

    def refused_for_s(self, caller: str) -> float:
        """Count a request; return 0 if it is allowed, else how long the next has to wait."""
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
