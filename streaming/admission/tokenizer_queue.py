"""Work for the tokenizer's threads, in which callers take turns.

A thread's own queue would be first come first served: a caller with a hundred long prompts would
hold up all others. So no more is given to the threads than they can begin at once. What waits can
be taken back; what has begun is counted until it is done, whether or not anybody still wants it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, cast

from streaming.admission.capacity import Place
from streaming.errors import EngineFailure, StreamingError

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Job:
    caller: str
    num_requests: int
    work: Callable[[], object]
    result: asyncio.Future[object]
    is_running: bool = False
    is_counted: bool = True


class Threads(Protocol):
    def submit(self, work: Callable[[], T], /) -> Future[T]:
        """Have `work` run on a thread."""


class TokenizerQueue:
    """Runs work on threads, one piece of each caller after the other; on the event loop's thread.

    Args:
        threads: run the work.
        num_threads: how many of them there are.
        check: called before each piece of work; what it raises ends all that waits.
    """

    def __init__(self, threads: Threads, *, num_threads: int, check: Callable[[], None]) -> None:
        self._threads = threads
        self._num_threads = num_threads
        self._check = check
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()
        """By caller; the one whose turn it is first."""
        self._num_running = 0
        self._held: Counter[str] = Counter()

    @property
    def num_requests(self) -> Counter[str]:
        """How many requests of each caller wait here or are being worked on."""
        return self._held

    @property
    def places(self) -> Iterator[Place]:
        """What waits and has not begun, of one caller the oldest first."""
        for caller, jobs in self._waiting.items():
            for job in jobs:
                yield Place(caller, job.num_requests, 0, self._failing(job))

    async def run(self, work: Callable[[], T], *, caller: str, num_requests: int) -> T:
        """Run `work` on a thread, counted as so many requests, and return what it returns.

        It is counted until the caller has the result. Where the caller leaves before, work that has
        not begun is forgotten at once.
        """
        job = _Job(caller, num_requests, work, asyncio.get_running_loop().create_future())
        self._held[caller] += num_requests
        self._waiting.setdefault(caller, deque()).append(job)
        self._begin()
        try:
            return cast(T, await job.result)
        finally:
            if not job.is_running:
                self._forget(job)
                self._count_out(job)

    def fail_waiting(self, error: StreamingError) -> None:
        """End all that has not begun."""
        waiting, self._waiting = self._waiting, OrderedDict()
        for jobs in waiting.values():
            for job in jobs:
                if not job.result.done():
                    job.result.set_exception(error)

    def _begin(self) -> None:
        """Give the threads as much as they can begin now."""
        while self._waiting and self._num_running < self._num_threads:
            if (error := self._refusal()) is not None:
                self.fail_waiting(error)
                return
            caller, jobs = next(iter(self._waiting.items()))
            job = jobs.popleft()
            if jobs:
                self._waiting.move_to_end(caller)
            else:
                del self._waiting[caller]
            self._num_running += 1
            job.is_running = True
            running = asyncio.wrap_future(self._threads.submit(job.work))
            running.add_done_callback(partial(self._finish, job))

    def _finish(self, job: _Job, done: asyncio.Future[object]) -> None:
        self._num_running -= 1
        job.is_running = False
        # The threads may have been shut down before they came to it.
        error = self._refusal() or EngineFailure() if done.cancelled() else done.exception()
        if job.result.done():
            self._count_out(job)  # its caller has left
        elif error is None:
            job.result.set_result(done.result())
        else:
            job.result.set_exception(error)
        self._begin()

    def _refusal(self) -> StreamingError | None:
        try:
            self._check()
        except StreamingError as error:
            return error
        return None

    def _failing(self, job: _Job) -> Callable[[StreamingError], None]:
        def fail(error: StreamingError) -> None:
            self._forget(job)
            self._count_out(job)
            if not job.result.done():
                job.result.set_exception(error)

        return fail

    def _forget(self, job: _Job) -> None:
        """Take work out that has not begun."""
        jobs = self._waiting.get(job.caller)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.caller]

    def _count_out(self, job: _Job) -> None:
        if job.is_counted:
            job.is_counted = False
            self._held[job.caller] -= job.num_requests
            if not self._held[job.caller]:
                del self._held[job.caller]
