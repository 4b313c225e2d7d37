"""The shared memory budget of all `WS /v1/responses` sockets.

Each socket has its own limits, but the sum over many sockets can exceed the machine's memory. This
budget covers all sockets together: the responses they keep to continue from, where the oldest is
evicted first whichever socket it belongs to, and the requests in progress, which are refused when
the budget is used up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

DEFAULT_MAX_BYTES = 2**28
SMALL_REQUEST_CHARS = 4096
"""Requests up to this size are not counted, so the large requests of others cannot block them."""
_BYTES_PER_CHAR = 4
"""Estimate: a request is in memory as received text and as parsed objects."""


class SocketMemory:
    """Counts the bytes that sockets keep, and evicts responses when the budget is exceeded.

    Args:
        max_bytes: budget of all sockets together; requests may use half of it. The newest response
            is always kept and a single large request is always served, whatever its size.
    """

    def __init__(self, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[object, tuple[int, Callable[[], object]]] = OrderedDict()
        self.num_kept_bytes = 0
        self.num_request_bytes = 0

    def keep(self, key: object, num_bytes: int, forget: Callable[[], object]) -> None:
        """Count a response, and evict older ones to stay within the budget.

        Args:
            key: where the response is kept; replaces the previous entry of the same key.
            num_bytes: size of the response.
            forget: called when the response is evicted.
        """
        self.release(key)
        self._kept[key] = num_bytes, forget
        self.num_kept_bytes += num_bytes
        self._evict_oldest()

    def release(self, key: object) -> None:
        """Stop counting a response. Idempotent."""
        num_bytes, _ = self._kept.pop(key, (0, None))
        self.num_kept_bytes -= num_bytes

    def has_room_for_request(self, num_chars: int) -> bool:
        """Return whether a request of `num_chars` characters fits into the budget."""
        if num_chars <= SMALL_REQUEST_CHARS or not self.num_request_bytes:
            return True
        return self.num_request_bytes + num_chars * _BYTES_PER_CHAR <= self._max_bytes // 2

    def begin_request(self, num_chars: int) -> None:
        """Count a request of `num_chars` characters until `end_request`."""
        if num_chars > SMALL_REQUEST_CHARS:
            self.num_request_bytes += num_chars * _BYTES_PER_CHAR
            self._evict_oldest()

    def end_request(self, num_chars: int) -> None:
        """Stop counting a request; pass the same `num_chars` as to `begin_request`."""
        if num_chars > SMALL_REQUEST_CHARS:
            self.num_request_bytes -= num_chars * _BYTES_PER_CHAR

    def _evict_oldest(self) -> None:
        while (
            len(self._kept) > 1 and self.num_kept_bytes + self.num_request_bytes > self._max_bytes
        ):
            _, (num_bytes, forget) = self._kept.popitem(last=False)
            self.num_kept_bytes -= num_bytes
            forget()
