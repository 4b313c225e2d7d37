"""The open WebSockets: how many there may be, and how they learn that the server goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ConnectionRegistry:
    """Counts connections up to a limit and wakes them all when the server drains.

    Args:
        max_connections: WebSockets open at once.
    """

    def __init__(self, *, max_connections: int) -> None:
        self._max_connections = max_connections
        self._on_drain: dict[object, Callable[[], None]] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._on_drain)

    @property
    def is_full(self) -> bool:
        return len(self._on_drain) >= self._max_connections

    @contextmanager
    def register(self, on_drain: Callable[[], None]) -> Iterator[None]:
        """Count a connection while the block runs; `on_drain` is called when the server drains."""
        connection = object()
        self._on_drain[connection] = on_drain
        self._empty.clear()
        try:
            yield
        finally:
            del self._on_drain[connection]
            if not self._on_drain:
                self._empty.set()

    def drain(self) -> None:
        """Tell every connection to close once its streams have ended."""
        self.is_draining = True
        for on_drain in tuple(self._on_drain.values()):
            on_drain()

    async def wait_empty(self) -> None:
        await self._empty.wait()
