"""How much of one turn of the event loop all connections together may spend on parsing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Turns:
    """Runs work at once while the turn has time left, and else in later turns, first come first.

    However many clients send as fast as they can, the loop comes back to everyone else within
    about the budget.

    Args:
        budget_s: time for all work in one turn; each piece of work should take a fraction of it.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, budget_s: float = 0.002, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._waiting: dict[Callable[[], None], None] = {}  # in order, each once
        self._spent_s = 0.0
        self._is_working = False
        self._is_scheduled = False

    def run(self, work: Callable[[], None]) -> None:
        """Do the work now or in a later turn; work that waits already is not added again.

        Work that calls this for what is left of it goes to the end of the row.
        """
        if self._is_working or self._waiting or self._spent_s >= self._budget_s:
            self._waiting[work] = None
        else:
            self._do(work)
        self._schedule()

    def _do(self, work: Callable[[], None]) -> None:
        started_at = self._clock()
        self._is_working = True
        try:
            work()
        finally:
            self._is_working = False
            self._spent_s += self._clock() - started_at

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_scheduled = False
        self._spent_s = 0.0
        try:
            while self._waiting and self._spent_s < self._budget_s:
                work = next(iter(self._waiting))
                del self._waiting[work]
                self._do(work)
        finally:
            if self._waiting or self._spent_s:
                self._schedule()
