"""Parsing of messages that are too large for the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

LARGE_INPUT_BYTES = 64 * 1024
"""A message up to this size is parsed on the loop, in 10 ms at most."""

_T = TypeVar("_T")


class LargeMessages:
    """Runs work in a thread, one piece at a time, callers in turn.

    Python's parser holds the interpreter lock, but hands it over every 5 ms wherever it runs code
    of ours; the longest time without is that of a megabyte of numbers, some 25 ms. Two threads at
    once would finish no sooner, and hold up the loop twice as long.
    """

    def __init__(self) -> None:
        self._is_busy = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # callers in order of turn

    async def run(self, caller: str, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, or raise what it raises."""
        await self._wait_turn(caller)
        done = asyncio.get_running_loop().run_in_executor(None, work)
        done.add_done_callback(self._end_turn)
        # Whoever gives up waiting does not end the work, and must not let in the next.
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
            done.exception()  # seen, whether or not someone still waits for it
        self._give_turn()

    def _give_turn(self) -> None:
        while self._waiting:
            caller = next(iter(self._waiting))
            turns = self._waiting.pop(caller)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # to the end of the row
            if not turn.done():
                turn.set_result(None)
                return
        self._is_busy = False
