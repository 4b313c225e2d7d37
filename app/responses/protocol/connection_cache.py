"""Caches the responses that a socket can continue without the store."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Generic

from app.responses.protocol.commands import ResponseT
from app.websocket.socket_memory import SocketMemory

MAX_CACHED_BYTES = 16 * 2**20


class ConnectionCache(Generic[ResponseT]):
    """Holds the latest response of each stream, up to a total size; evicts the oldest first.

    The cache ends with its socket, so a response with `store: false` can be continued only there.

    Args:
        memory: shared with other sockets; may evict a response at any time.
        max_bytes: limit for this socket; the newest response stays even if it alone is larger.
    """

    def __init__(self, memory: SocketMemory, *, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._memory = memory
        self._max_bytes = max_bytes
        self._latest: OrderedDict[str | None, ResponseT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._latest)

    def find(self, response_id: str | None) -> ResponseT | None:
        """Return the response with this id if it is the latest of a stream."""
        for response in self._latest.values():
            if response.response_id == response_id:
                return response
        return None

    def is_latest(self, response_id: str, stream_id: str | None) -> bool:
        """Return whether the response is the latest of this stream."""
        latest = self._latest.get(stream_id)
        return latest is not None and latest.response_id == response_id

    def put(self, response: ResponseT, stream_id: str | None) -> None:
        """Cache the latest response of a stream."""
        self._latest[stream_id] = response
        self._latest.move_to_end(stream_id)
        while len(self._latest) > 1 and self._num_bytes > self._max_bytes:
            self._remove(next(iter(self._latest)))
        self._memory.keep(
            (self, stream_id), response.num_bytes, partial(self._latest.pop, stream_id)
        )

    def evict(self, response_id: str) -> None:
        """Remove a response from every stream."""
        for stream_id, response in tuple(self._latest.items()):
            if response.response_id == response_id:
                self._remove(stream_id)

    def clear(self) -> None:
        """Remove all responses; call it when the socket closes."""
        for stream_id in tuple(self._latest):
            self._remove(stream_id)

    def _remove(self, stream_id: str | None) -> None:
        del self._latest[stream_id]
        self._memory.release((self, stream_id))

    @property
    def _num_bytes(self) -> int:
        return sum(response.num_bytes for response in self._latest.values())
