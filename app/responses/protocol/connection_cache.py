"""The responses that this socket can continue, stored or not."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Generic

from app.responses.protocol.commands import ResponseT
from app.websocket.socket_memory import SocketMemory

MAX_CACHED_BYTES = 16 * 2**20


class ConnectionCache(Generic[ResponseT]):
    """The latest response of each lane, up to a size; what was kept longest ago goes first.

    It dies with its socket, so a response that is not stored can be continued on no other.

    Args:
        memory: shared with other sockets; may want a response to be forgotten at any time.
        max_bytes: of all kept here; the newest stays even if it alone is larger.
    """

    def __init__(self, memory: SocketMemory, *, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._memory = memory
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
            self._forget(next(iter(self._latest)))
        self._memory.keep((self, lane), response.num_bytes, partial(self._latest.pop, lane))

    def evict(self, response_id: str) -> None:
        """Forget a response, whichever lanes have it."""
        for lane, response in tuple(self._latest.items()):
            if response.response_id == response_id:
                self._forget(lane)

    def clear(self) -> None:
        """Forget all; the socket is closed."""
        for lane in tuple(self._latest):
            self._forget(lane)

    def _forget(self, lane: str | None) -> None:
        del self._latest[lane]
        self._memory.release((self, lane))

    @property
    def _num_bytes(self) -> int:
        return sum(response.num_bytes for response in self._latest.values())
