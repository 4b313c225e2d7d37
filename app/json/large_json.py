"""Runs the parsing of large messages on a worker thread, for HTTP bodies and WebSocket frames."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

LARGE_INPUT_BYTES = 64 * 1024
"""Largest message to parse on the event loop, which takes at most 10 ms."""

_T = TypeVar("_T")


class LargeMessages:
    """Runs functions on a worker thread, one at a time, and takes callers in turn.

    Python's JSON parser holds the GIL, but offers it every 5 ms wherever it calls Python code. The
    longest time without an offer is about 25 ms, for a megabyte of numbers. A second thread would
    finish nothing sooner, and would block the event loop for twice as long.
    """

    def __init__(self) -> None:
        self._is_busy = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by caller, next caller first

    async def run(self, caller: str, work: Callable[[], _T]) -> _T:
        """Return the result of `work`, or raise its exception."""
        await self._wait_turn(caller)
        done = asyncio.get_running_loop().run_in_executor(None, work)
        done.add_done_callback(self._end_turn)
        # Cancelling the caller does not stop the thread; the next caller must still wait for it.
        return await asyncio.shield(done)

    async def _wait_turn(self, caller: str) -> None:
        if not self._is_busy:
            self._is_busy = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_turn()
            raise

    def _end_turn(self, done: asyncio.Future[_T]) -> None:
        if not done.cancelled():
            done.exception()  # mark as retrieved, in case the caller was cancelled
        self._give_turn()

    def _give_turn(self) -> None:
        while self._waiting:
            caller = next(iter(self._waiting))
            turns = self._waiting.pop(caller)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # last in the order now
            if not turn.done():
                turn.set_result(None)
                return
        self._is_busy = False
