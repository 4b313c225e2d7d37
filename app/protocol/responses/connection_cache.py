"""The responses that this socket can continue, stored or not."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic

from app.protocol.responses.commands import ResponseT

MAX_CACHED_BYTES = 16 * 2**20


class ConnectionCache(Generic[ResponseT]):
    """The latest response of each lane, up to a size; what was kept longest ago goes first.

    It dies with its socket, so a response that is not stored can be continued on no other.

    Args:
        max_bytes: of all kept together; the newest stays even if it alone is larger.
    """

    def __init__(self, *, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._latest: OrderedDict[str | None, ResponseT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._latest)

    def find(self, response_id: str | None) -> ResponseT | None:
        """Return a lane's latest response if it has this id."""
        for response in self._latest.values():
            if response.response_id == response_id:
                return response
        return None

    def is_latest(self, response_id: str, lane: str | None) -> bool:
        latest = self._latest.get(lane)
        return latest is not None and latest.response_id == response_id

    def keep(self, response: ResponseT, lane: str | None) -> None:
        """Put a response in the place of the lane's last."""
        self._latest[lane] = response
        self._latest.move_to_end(lane)
        while len(self._latest) > 1 and self._num_bytes > self._max_bytes:
            self._latest.popitem(last=False)

    def evict(self, response_id: str) -> None:
        """Forget a response, whichever lanes have it."""
        for lane, response in tuple(self._latest.items()):
            if response.response_id == response_id:
                del self._latest[lane]

    @property
    def _num_bytes(self) -> int:
        return sum(response.num_bytes for response in self._latest.values())
