"""Fair queue for parsing: limits how much of one event loop iteration all connections may use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

Work: TypeAlias = Callable[[], None]

_UNFINISHED_EVERY = 4
"""One in so many pieces of work comes from the unfinished ones, so that new work cannot starve
them."""


@dataclass(slots=True)
class _AddressQueue:
    """The work of one address; the dicts are ordered sets."""

    new: dict[Work, None] = field(default_factory=dict)
    unfinished: dict[Work, None] = field(default_factory=dict)
    num_popped: int = 0

    def pop(self) -> Work:
        self.num_popped += 1
        is_unfinished = not self.new or (
            self.unfinished and self.num_popped % _UNFINISHED_EVERY == 0
        )
        queue = self.unfinished if is_unfinished else self.new
        work = next(iter(queue))
        del queue[work]
        return work


class ParsingQueue:
    """Runs work at once while the loop iteration has time left, else in later iterations.

    However fast clients send, the event loop gets control back after about `budget_s`. Addresses
    are served round-robin. Within one address, new work runs before unfinished work, so a client
    that sends little waits briefly behind one that sends much.

    Args:
        budget_s: time for all work in one loop iteration, in seconds; one piece of work should
            take a fraction of it.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, budget_s: float = 0.002, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._queues: dict[str, _AddressQueue] = {}  # in the order in which they are served
        self._spent_s = 0.0
        self._is_working = False
        self._is_scheduled = False

    def submit(self, work: Work, *, address: str = "") -> None:
        """Run the work now or in a later iteration; work that is queued is not added again."""
        if self._is_working or self._queues or self._spent_s >= self._budget_s:
            queue = self._queues.setdefault(address, _AddressQueue())
            if work not in queue.unfinished:
                queue.new[work] = None
        else:
            self._run(work)
        self._schedule()

    def resubmit(self, work: Work, *, address: str = "") -> None:
        """Queue the rest of unfinished work, for a later time."""
        queue = self._queues.setdefault(address, _AddressQueue())
        if work not in queue.new:
            queue.unfinished[work] = None
        self._schedule()

    def _run(self, work: Work) -> None:
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
            asyncio.get_running_loop().call_soon(self._begin_iteration)

    def _begin_iteration(self) -> None:
        self._is_scheduled = False
        self._spent_s = 0.0
        try:
            while self._queues and self._spent_s < self._budget_s:
                self._run(self._pop())
        finally:
            # Once more after the last work, to reset the time spent.
            if self._queues or self._spent_s:
                self._schedule()

    def _pop(self) -> Work:
        address = next(iter(self._queues))
        queue = self._queues.pop(address)
        work = queue.pop()
        if queue.new or queue.unfinished:
            self._queues[address] = queue  # at the end
        return work
