"""The open WebSockets: how many each caller may have, and how they hear that the server goes away.

A newcomer that finds all places taken takes one back from the caller that has most, if that still
has as many as the newcomer's caller afterwards: the newest of its sockets is closed, and what was
open on it is in its grace and can be resumed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class OpenConnection(Protocol):
    def drain(self) -> None:
        """Close once nothing is open."""

    def give_way(self) -> None:
        """Close now, for somebody else."""


class ConnectionRegistry:
    """Counts connections up to a limit, of each caller and in all, and tells them to close.

    Args:
        max_connections: WebSockets open at once.
        max_connections_per_caller: what one caller may have of them; None is all.
    """

    def __init__(
        self, *, max_connections: int, max_connections_per_caller: int | None = None
    ) -> None:
        self._max_connections = max_connections
        self._max_connections_per_caller = max_connections_per_caller or max_connections
        self._callers: dict[OpenConnection, str] = {}
        """Those that hold a place, the oldest first."""
        self._closing: set[OpenConnection] = set()
        """Those that gave their place away, until they are closed."""
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._callers) + len(self._closing)

    def has_all_of_its_own(self, caller: str) -> bool:
        """Whether the caller has as many connections as one may."""
        return self._num_of(caller) >= self._max_connections_per_caller

    def is_full_for(self, caller: str) -> bool:
        """Whether there is no place for the caller, nor one to take back."""
        return self._is_full and self._who_gives_way(caller) is None

    @contextmanager
    def register(self, caller: str, connection: OpenConnection) -> Iterator[None]:
        """Count a connection while the block runs; there must be a place for it."""
        if self._is_full and (giving := self._who_gives_way(caller)) is not None:
            del self._callers[giving]
            self._closing.add(giving)
            giving.give_way()
        self._callers[connection] = caller
        self._empty.clear()
        try:
            yield
        finally:
            self._callers.pop(connection, None)
            self._closing.discard(connection)
            if not len(self):
                self._empty.set()

    def drain(self) -> None:
        """Tell every connection to close once its streams have ended."""
        self.is_draining = True
        for connection in tuple(self._callers):
            connection.drain()

    async def wait_empty(self) -> None:
        await self._empty.wait()

    @property
    def _is_full(self) -> bool:
        return len(self._callers) >= self._max_connections

    def _num_of(self, caller: str) -> int:
        return sum(each == caller for each in self._callers.values())

    def _who_gives_way(self, newcomer: str) -> OpenConnection | None:
        counts = Counter(self._callers.values())
        most, num = max(counts.items(), key=lambda item: item[1], default=(newcomer, 0))
        if num <= counts[newcomer] + 1:
            return None
        return [each for each, caller in self._callers.items() if caller == most][-1]
