"""The registry of open WebSocket connections: limits per caller and in total, eviction, drain.

When all places are taken, a new connection evicts the newest connection of the caller that has the
most, if that caller keeps at least as many as the new connection's caller then has. Generations of
the evicted connection enter their grace period and can be resumed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class OpenConnection(Protocol):
    """A connection that the registry can close."""

    def drain(self) -> None:
        """Close once nothing is open."""

    def evict(self) -> None:
        """Close now, to make room for another caller."""


class ConnectionRegistry:
    """Counts open connections against the limits, and closes them on eviction and drain.

    Args:
        max_connections: WebSockets open at once.
        max_connections_per_caller: WebSockets of one caller open at once; None sets no limit
            besides `max_connections`.
    """

    def __init__(
        self, *, max_connections: int, max_connections_per_caller: int | None = None
    ) -> None:
        self._max_connections = max_connections
        self._max_connections_per_caller = max_connections_per_caller or max_connections
        self._callers: dict[OpenConnection, str] = {}
        """Caller of each connection that holds a place, oldest first."""
        self._evicted: set[OpenConnection] = set()
        """Evicted connections that are not closed yet."""
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._callers) + len(self._evicted)

    def is_at_caller_limit(self, caller: str) -> bool:
        """Return whether the caller has as many connections as one caller may have."""
        return self._num_connections(caller) >= self._max_connections_per_caller

    def is_full_for(self, caller: str) -> bool:
        """Return whether all places are taken and the caller may not evict a connection."""
        return self._is_full and self._find_evictable(caller) is None

    @contextmanager
    def register(self, caller: str, connection: OpenConnection) -> Iterator[None]:
        """Count a connection while the block runs, and evict another one if all places are taken.

        Check `is_full_for` first.
        """
        if self._is_full and (evictable := self._find_evictable(caller)) is not None:
            del self._callers[evictable]
            self._evicted.add(evictable)
            evictable.evict()
        self._callers[connection] = caller
        self._empty.clear()
        try:
            yield
        finally:
            self._callers.pop(connection, None)
            self._evicted.discard(connection)
            if not len(self):
                self._empty.set()

    def drain(self) -> None:
        """Ask every connection to close once its streams have ended."""
        self.is_draining = True
        for connection in tuple(self._callers):
            connection.drain()

    async def wait_empty(self) -> None:
        """Wait until no connection is open."""
        await self._empty.wait()

    @property
    def _is_full(self) -> bool:
        return len(self._callers) >= self._max_connections

    def _num_connections(self, caller: str) -> int:
        return sum(each == caller for each in self._callers.values())

    def _find_evictable(self, new_caller: str) -> OpenConnection | None:
        counts = Counter(self._callers.values())
        most, num = max(counts.items(), key=lambda item: item[1], default=(new_caller, 0))
        if num <= counts[new_caller] + 1:
            return None
        return [each for each, caller in self._callers.items() if caller == most][-1]
