"""Waiting for what no event tells: conditions that the event loop looks at before it waits."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable


async def until(is_true: Callable[[], bool]) -> None:
    """Wait until a condition holds, which is looked at in each turn of the loop.

    Costs nothing while nothing happens on the loop. A thread that makes the condition true
    therefore has to wake the loop afterwards, as the engine's does when it tells of a step.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, WatchingLoop), "only tests' own loops look at conditions"
    await loop.until(is_true)


class WakingSemaphore(threading.Semaphore):
    """A semaphore whose release wakes the loop that it was made on, for those that wait `until`."""

    def __init__(self, value: int = 0) -> None:
        super().__init__(value)
        self._loop = asyncio.get_running_loop()

    def release(self, n: int = 1) -> None:
        super().release(n)
        self._loop.call_soon_threadsafe(lambda: None)


class WatchingLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with `until`; every async test runs on one."""

    def __init__(self) -> None:
        self._watcher = _WatchingSelector()
        super().__init__(self._watcher)

    async def until(self, is_true: Callable[[], bool]) -> None:
        if not is_true():
            await self._watcher.watch(is_true, self.create_future())


class _WatchingSelector(selectors.DefaultSelector):
    """Looks at conditions before each wait, which comes after all that was ready has run."""

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[asyncio.Future[None], Callable[[], bool]] = {}

    async def watch(self, is_true: Callable[[], bool], holds: asyncio.Future[None]) -> None:
        """Return when the condition holds, which resolves `holds`; raise what it raises."""
        self._watched[holds] = is_true
        try:
            await holds
        finally:
            del self._watched[holds]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready in time; at once where a condition holds, so that it is acted on."""
        for holds, is_true in self._watched.items():
            if holds.done():  # its waiter has not run yet
                continue
            try:
                if is_true():
                    holds.set_result(None)
            except Exception as failure:  # noqa: BLE001 - raised again where it is waited for
                holds.set_exception(failure)
            if holds.done():
                timeout = 0
        return super().select(timeout)
