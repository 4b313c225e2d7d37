"""The memory that all sockets of the dialect take together.

Each socket has limits of its own; with many sockets these add up to more than a machine has. So
there is one budget for all of them: for the responses that they can go on from, where what was kept
longest ago goes first, whichever socket it is of, and for the requests that have not ended, which
are refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

DEFAULT_MAX_BYTES = 2**28
SMALL_REQUEST_CHARS = 4096
"""Requests up to here are not counted; so one that is small is not refused for those of others."""
_BYTES_PER_CHAR = 4
"""A request is held as it came, and as what was read from it."""


class SocketMemory:
    """Counts what sockets keep, and makes them forget what is too much.

    Args:
        max_bytes: of all together; requests take half of it at most. The newest response is kept,
            and one large request served, whatever its size.
    """

    def __init__(self, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[object, tuple[int, Callable[[], object]]] = OrderedDict()
        self.num_kept_bytes = 0
        self.num_request_bytes = 0

    def keep(self, key: object, num_bytes: int, forget: Callable[[], object]) -> None:
        """Count a response, and forget others that were kept longer ago.

        Args:
            key: of the place that it is kept in; what was there before counts no more.
            forget: called when it is to be forgotten.
        """
        self.release(key)
        self._kept[key] = num_bytes, forget
        self.num_kept_bytes += num_bytes
        self._make_room()

    def release(self, key: object) -> None:
        """Count a response no more. Idempotent."""
        num_bytes, _ = self._kept.pop(key, (0, None))
        self.num_kept_bytes -= num_bytes

    def has_room_for_request(self, num_chars: int) -> bool:
        if num_chars <= SMALL_REQUEST_CHARS or not self.num_request_bytes:
            return True
        return self.num_request_bytes + num_chars * _BYTES_PER_CHAR <= self._max_bytes // 2

    def begin_request(self, num_chars: int) -> None:
        """Count a request until `end_request`."""
        if num_chars > SMALL_REQUEST_CHARS:
            self.num_request_bytes += num_chars * _BYTES_PER_CHAR
            self._make_room()

    def end_request(self, num_chars: int) -> None:
        if num_chars > SMALL_REQUEST_CHARS:
            self.num_request_bytes -= num_chars * _BYTES_PER_CHAR

    def _make_room(self) -> None:
        while (
            len(self._kept) > 1 and self.num_kept_bytes + self.num_request_bytes > self._max_bytes
        ):
            _, (num_bytes, forget) = self._kept.popitem(last=False)
            self.num_kept_bytes -= num_bytes
            forget()
