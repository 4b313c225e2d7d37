"""How much of one turn of the event loop all connections together may spend on parsing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

Work: TypeAlias = Callable[[], None]

_MORE_EVERY = 4
"""One piece of work in so many is the rest of something long, however much is new."""


@dataclass(slots=True)
class _Row:
    """What waits of one address; dicts are rows in which each stands once."""

    new: dict[Work, None] = field(default_factory=dict)
    more: dict[Work, None] = field(default_factory=dict)
    num_taken: int = 0

    def take(self) -> Work:
        self.num_taken += 1
        is_more = not self.new or (self.more and self.num_taken % _MORE_EVERY == 0)
        row = self.more if is_more else self.new
        work = next(iter(row))
        del row[work]
        return work


class Turns:
    """Runs work at once while the turn has time left, and else in later turns.

    However many clients send as fast as they can, the loop comes back within about the budget.
    Addresses take turns; of one address, what has come new goes before the rest of what is long:
    who sends little waits for few.

    Args:
        budget_s: time for all work in one turn; each piece of work should take a fraction of it.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, budget_s: float = 0.002, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._rows: dict[str, _Row] = {}  # addresses in order of turn
        self._spent_s = 0.0
        self._is_working = False
        self._is_scheduled = False

    def run(self, work: Work, *, address: str = "") -> None:
        """Do the work now or in a later turn; work that waits already is not added again."""
        if self._is_working or self._rows or self._spent_s >= self._budget_s:
            row = self._rows.setdefault(address, _Row())
            if work not in row.more:
                row.new[work] = None
        else:
            self._do(work)
        self._schedule()

    def go_on(self, work: Work, *, address: str = "") -> None:
        """Do the rest of the work later."""
        row = self._rows.setdefault(address, _Row())
        if work not in row.new:
            row.more[work] = None
        self._schedule()

    def _do(self, work: Work) -> None:
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
            while self._rows and self._spent_s < self._budget_s:
                self._do(self._take())
        finally:
            if self._rows or self._spent_s:
                self._schedule()

    def _take(self) -> Work:
        address = next(iter(self._rows))
        row = self._rows.pop(address)
        work = row.take()
        if row.new or row.more:
            self._rows[address] = row  # to the end
        return work
