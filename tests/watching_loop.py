"""An event loop whose tasks can wait for conditions, which it checks before each wait for I/O."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable


async def until(is_true: Callable[[], bool]) -> None:
    """Wait until a condition holds. It is checked in each iteration of the loop.

    It is not checked while the loop is idle. A thread that makes the condition true must therefore
    wake the loop, as the engine's thread does after each step.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, WatchingLoop), "only a WatchingLoop checks conditions"
    await loop.until(is_true)


class WakingSemaphore(threading.Semaphore):
    """A semaphore whose release wakes the loop that created it, for tasks in `until`."""

    def __init__(self, value: int = 0) -> None:
        super().__init__(value)
        self._loop = asyncio.get_running_loop()

    def release(self, n: int = 1) -> None:
        super().release(n)
        self._loop.call_soon_threadsafe(lambda: None)


class WatchingLoop(asyncio.SelectorEventLoop):
    """asyncio's selector loop with `until`; the loop of every async test."""

    def __init__(self) -> None:
        self._watcher = _WatchingSelector()
        super().__init__(self._watcher)

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait until a condition holds; see the function `until`."""
        if not is_true():
            await self._watcher.watch(is_true, self.create_future())


class _WatchingSelector(selectors.DefaultSelector):
    """Checks conditions before each wait, after all ready callbacks have run."""

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[asyncio.Future[None], Callable[[], bool]] = {}

    async def watch(self, is_true: Callable[[], bool], holds: asyncio.Future[None]) -> None:
        """Wait for `holds`, which `select` resolves when the condition holds or raises."""
        self._watched[holds] = is_true
        try:
            await holds
        finally:
            del self._watched[holds]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the ready files; do not wait if a condition holds, so that its task runs."""
        for holds, is_true in self._watched.items():
            if holds.done():  # its task has not run yet
                continue
            try:
                if is_true():
                    holds.set_result(None)
            except Exception as failure:  # noqa: BLE001 - raised in the waiting task
                holds.set_exception(failure)
            if holds.done():
                timeout = 0
        return super().select(timeout)
