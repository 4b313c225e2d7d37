"""Threads for work that may hang: one that does is given up, and another takes its place.

`concurrent.futures.ThreadPoolExecutor` does not serve here: it has no way to replace a thread, and
the interpreter waits at its exit for every thread of such a pool.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, TypeVar

from streaming.host import OPERATING_SYSTEM, Host, Inbox

T = TypeVar("T")
logger = logging.getLogger(__name__)


class WorkPanicked(RuntimeError):
    """The work raised what is no `Exception`, as a panic of a Rust library does; it is chained."""


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[], Any]
    future: Future[Any]


class _Worker:
    """One thread, and what it does now."""

    def __init__(self, name: str, jobs: Inbox[_Job | None], host: Host) -> None:
        self._jobs = jobs
        self._clock = host.now
        self.running: tuple[_Job, float] | None = None
        """The job and when it began. Written by the thread, read by any."""
        self.is_given_up = False
        self.thread = host.make_thread(self._run, name=name)
        self.thread.start()

    def _run(self) -> None:
        while not self.is_given_up and (job := self._jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                self.running = (job, self._clock())
                _do(job)
                self.running = None
            del job  # or what it holds would live until the next one


def _do(job: _Job) -> None:
    try:
        try:
            result = job.work()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            job.future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - and that must not end who waits
            panic = WorkPanicked(f"{type(error).__name__}: {error}")
            panic.__cause__ = error
            job.future.set_exception(panic)
        else:
            job.future.set_result(result)
    except InvalidStateError:
        logger.info("work that had been given up has ended after all")


def _fail(job: _Job, error: Exception) -> None:
    try:
        job.future.set_exception(error)
    except InvalidStateError:
        logger.debug("work ended just before it was given up")


class WorkerPool:
    """Runs work on a few daemon threads, first come, first served.

    Args:
        num_threads: at work at once.
        name: of the threads.
        host: gives time, threads and queues.
    """

    def __init__(self, num_threads: int, *, name: str, host: Host = OPERATING_SYSTEM) -> None:
        self._num_threads = num_threads
        self._name = name
        self._host = host
        self._jobs: Inbox[_Job | None] = host.make_inbox()
        self._workers: list[_Worker] = []
        self._given_up: list[_Worker] = []

    @property
    def num_stuck(self) -> int:
        """Threads that were given up and have not ended."""
        self._given_up = [worker for worker in self._given_up if worker.thread.is_alive()]
        return len(self._given_up)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` run on a thread, as soon as one is free."""
        future: Future[T] = Future()
        self._jobs.put(_Job(work, future))
        if len(self._workers) < self._num_threads:
            self._workers.append(self._new_worker())
        return future

    def give_up_stuck(self, error: Exception, *, timeout_s: float) -> int:
        """Fail what has run longer than `timeout_s` with `error`, and replace its threads.

        Returns:
            How many there were.
        """
        late_at = self._host.now() - timeout_s
        num_stuck = 0
        for index, worker in enumerate(self._workers):
            running = worker.running
            if running is None or running[1] > late_at:
                continue
            worker.is_given_up = True
            self._workers[index] = self._new_worker()
            self._given_up.append(worker)
            num_stuck += 1
            _fail(running[0], error)
        return num_stuck

    def fail_all(self, error: Exception) -> None:
        """Fail all that runs or waits with `error`; what runs goes on, and nobody waits for it."""
        while not self._jobs.empty():
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                _fail(job, error)
        for worker in self._workers:
            if (running := worker.running) is not None:
                _fail(running[0], error)

    def shutdown(self, timeout_s: float) -> bool:
        """End the threads once they have done what was submitted; wait for that at most so long.

        Returns:
            Whether all threads have ended, those that were given up included.
        """
        for _ in self._workers:
            self._jobs.put(None)
        end_at = self._host.now() + timeout_s
        workers = (*self._workers, *self._given_up)
        for worker in workers:
            worker.thread.join(max(0.0, end_at - self._host.now()))
        return not any(worker.thread.is_alive() for worker in workers)

    def _new_worker(self) -> _Worker:
        return _Worker(self._name, self._jobs, self._host)
