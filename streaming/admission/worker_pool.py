"""A thread pool for work that may hang: a stuck thread is abandoned and replaced.

`concurrent.futures.ThreadPoolExecutor` cannot replace a thread, and the interpreter waits for every
thread of such a pool when it exits. `AdmissionController` uses this pool for the tokenizer.
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
    """The work raised a `BaseException`, as a panic in a Rust library does; it is the cause."""


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[], Any]
    future: Future[Any]


class _Worker:
    """One thread and its current job."""

    def __init__(self, name: str, jobs: Inbox[_Job | None], host: Host) -> None:
        self._jobs = jobs
        self._clock = host.now
        self.running: tuple[_Job, float] | None = None
        """The job and when it started. Written by the thread, read by any."""
        self.is_abandoned = False
        self.thread = host.make_thread(self._run, name=name)
        self.thread.start()

    def _run(self) -> None:
        while not self.is_abandoned and (job := self._jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                self.running = (job, self._clock())
                _do(job)
                self.running = None
            del job  # or its result would stay in memory until the next job


def _do(job: _Job) -> None:
    try:
        try:
            result = job.work()
        except Exception as error:  # noqa: BLE001 - raised in the caller
            job.future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - must not end the caller's task
            panic = WorkPanicked(f"{type(error).__name__}: {error}")
            panic.__cause__ = error
            job.future.set_exception(panic)
        else:
            job.future.set_result(result)
    except InvalidStateError:
        logger.info("abandoned work has ended after all")


def _fail(job: _Job, error: Exception) -> None:
    try:
        job.future.set_exception(error)
    except InvalidStateError:
        logger.debug("work ended just before it was abandoned")


class WorkerPool:
    """Runs work on a few daemon threads, first come, first served.

    Args:
        num_threads: most threads at work at once.
        name: name of the threads.
        host: provides the clock, threads and queues.
    """

    def __init__(self, num_threads: int, *, name: str, host: Host = OPERATING_SYSTEM) -> None:
        self._num_threads = num_threads
        self._name = name
        self._host = host
        self._jobs: Inbox[_Job | None] = host.make_inbox()
        self._workers: list[_Worker] = []
        self._abandoned: list[_Worker] = []

    @property
    def num_stuck(self) -> int:
        """Number of abandoned threads that have not ended."""
        self._abandoned = [worker for worker in self._abandoned if worker.thread.is_alive()]
        return len(self._abandoned)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue `work` to run on a thread, and return its future."""
        future: Future[T] = Future()
        self._jobs.put(_Job(work, future))
        if len(self._workers) < self._num_threads:
            self._workers.append(self._new_worker())
        return future

    def replace_stuck(self, error: Exception, *, timeout_s: float) -> int:
        """Fail jobs that have run longer than `timeout_s`, and replace their threads.

        Returns:
            The number of threads replaced.
        """
        started_before = self._host.now() - timeout_s
        num_stuck = 0
        for index, worker in enumerate(self._workers):
            running = worker.running
            if running is None or running[1] > started_before:
                continue
            worker.is_abandoned = True
            self._workers[index] = self._new_worker()
            self._abandoned.append(worker)
            num_stuck += 1
            _fail(running[0], error)
        return num_stuck

    def fail_all(self, error: Exception) -> None:
        """Fail all running and waiting jobs with `error`; running threads are not interrupted."""
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
        """End the threads after all submitted work, and wait up to `timeout_s` seconds for that.

        Returns:
            Whether all threads have ended, abandoned ones included.
        """
        for _ in self._workers:
            self._jobs.put(None)
        end_at = self._host.now() + timeout_s
        workers = (*self._workers, *self._abandoned)
        for worker in workers:
            worker.thread.join(max(0.0, end_at - self._host.now()))
        return not any(worker.thread.is_alive() for worker in workers)

    def _new_worker(self) -> _Worker:
        return _Worker(self._name, self._jobs, self._host)
