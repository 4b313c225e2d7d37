"""Queues work for the tokenizer threads, round-robin between callers.

The queue of a thread pool is first come, first served: a caller with a hundred long prompts would
block all others. So the pool gets no more work than it can start at once. Waiting work can be
removed; running work is counted until it is done, even if its caller has left.

Runs on the event loop. `AdmissionController` is the only caller.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, cast

from streaming.admission.capacity import Evictable
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
    """The part of `WorkerPool` that the queue uses."""

    def submit(self, work: Callable[[], T], /) -> Future[T]:
        """Queue `work` to run on a thread, and return its future."""


class TokenizerQueue:
    """Runs work on threads, one job of each caller in turn.

    Args:
        threads: the pool that runs the work.
        num_threads: number of threads in the pool.
        check: called before each job; an exception that it raises fails all waiting jobs.
    """

    def __init__(self, threads: Threads, *, num_threads: int, check: Callable[[], None]) -> None:
        self._threads = threads
        self._num_threads = num_threads
        self._check = check
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()
        """By caller, the next one first."""
        self._num_running = 0
        self._num_requests: Counter[str] = Counter()

    @property
    def num_requests(self) -> Counter[str]:
        """Number of requests that wait or run, by caller."""
        return self._num_requests

    @property
    def evictables(self) -> Iterator[Evictable]:
        """Waiting jobs; those of one caller in order, the oldest first."""
        for caller, jobs in self._waiting.items():
            for job in jobs:
                yield Evictable(caller, job.num_requests, 0, self._evictor(job))

    async def run(self, work: Callable[[], T], *, caller: str, num_requests: int) -> T:
        """Run `work` on a thread, counted as `num_requests` requests, and return its result.

        It is counted until the caller has the result. If the calling task is cancelled, a waiting
        job is removed at once.
        """
        job = _Job(caller, num_requests, work, asyncio.get_running_loop().create_future())
        self._num_requests[caller] += num_requests
        self._waiting.setdefault(caller, deque()).append(job)
        self._start_jobs()
        try:
            return cast(T, await job.result)
        finally:
            if not job.is_running:
                self._remove(job)
                self._uncount(job)

    def fail_waiting(self, error: StreamingError) -> None:
        """Fail all waiting jobs with `error`."""
        waiting, self._waiting = self._waiting, OrderedDict()
        for jobs in waiting.values():
            for job in jobs:
                if not job.result.done():
                    job.result.set_exception(error)

    def _start_jobs(self) -> None:
        """Submit as many jobs as the threads can start now."""
        while self._waiting and self._num_running < self._num_threads:
            if (error := self._check_error()) is not None:
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
        # The pool may have been shut down before it started the job.
        error = self._check_error() or EngineFailure() if done.cancelled() else done.exception()
        if job.result.done():
            self._uncount(job)  # its caller has left
        elif error is None:
            job.result.set_result(done.result())
        else:
            job.result.set_exception(error)
        self._start_jobs()

    def _check_error(self) -> StreamingError | None:
        try:
            self._check()
        except StreamingError as error:
            return error
        return None

    def _evictor(self, job: _Job) -> Callable[[StreamingError], None]:
        def evict(error: StreamingError) -> None:
            self._remove(job)
            self._uncount(job)
            if not job.result.done():
                job.result.set_exception(error)

        return evict

    def _remove(self, job: _Job) -> None:
        """Remove a waiting job from the queue, if it is still there."""
        jobs = self._waiting.get(job.caller)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.caller]

    def _uncount(self, job: _Job) -> None:
        if job.is_counted:
            job.is_counted = False
            self._num_requests[job.caller] -= job.num_requests
            if not self._num_requests[job.caller]:
                del self._num_requests[job.caller]
