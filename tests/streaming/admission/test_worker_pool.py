"""A stuck job fails and its thread is replaced, while the others go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from streaming.admission.worker_pool import WorkerPool, WorkPanicked
from streaming.errors import EngineFailure
from tests.support import TIMEOUT_S, ManualClock, ManualHost, Panic, tokenwire_threads


class Hang:
    """A job that is stuck until it is released."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self._go_on = threading.Event()

    def __call__(self) -> str:
        self.has_begun.set()
        self._go_on.wait()
        return "late"

    def let_go(self) -> None:
        self._go_on.set()


MakePool = Callable[..., WorkerPool]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make_pool(clock: ManualClock) -> Iterator[MakePool]:
    """Make pools; at exit, assert that no thread is left."""
    pools: list[WorkerPool] = []

    def make(num_threads: int = 1) -> WorkerPool:
        pools.append(WorkerPool(num_threads, name="tokenwire-test", host=ManualHost(clock)))
        return pools[-1]

    yield make
    assert all(pool.shutdown(TIMEOUT_S) for pool in pools)
    assert tokenwire_threads() == []


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_jobs_run_in_order_on_few_threads(make_pool: MakePool):
    pool = make_pool(1)
    done: list[int] = []
    jobs = [pool.submit(partial(done.append, number)) for number in range(50)]
    for job in jobs:
        job.result(TIMEOUT_S)
    assert done == list(range(50))
    assert tokenwire_threads() == ["tokenwire-test"]


def test_exceptions_of_a_job_are_raised_from_its_future(make_pool: MakePool):
    pool = make_pool()
    with pytest.raises(ValueError, match="bad"):
        pool.submit(raising(ValueError("bad"))).result(TIMEOUT_S)
    with pytest.raises(WorkPanicked, match="Panic: index out of bounds") as panicked:
        pool.submit(raising(Panic("index out of bounds"))).result(TIMEOUT_S)
    assert isinstance(panicked.value.__cause__, Panic)
    assert pool.submit(lambda: "fine").result(TIMEOUT_S) == "fine"


def test_a_job_cancelled_in_the_queue_does_not_run(make_pool: MakePool):
    pool, hang, done = make_pool(), Hang(), list[str]()
    first = pool.submit(hang)
    second = pool.submit(lambda: done.append("second"))
    assert second.cancel()
    hang.let_go()
    assert first.result(TIMEOUT_S) == "late"
    pool.submit(lambda: done.append("third")).result(TIMEOUT_S)
    assert done == ["third"]


def test_a_stuck_job_fails_and_its_thread_is_replaced(make_pool: MakePool, clock: ManualClock):
    pool, hang = make_pool(2), Hang()
    stuck = pool.submit(hang)
    assert hang.has_begun.wait(TIMEOUT_S)
    clock.advance(9.9)
    assert pool.replace_stuck(EngineFailure(), timeout_s=10.0) == 0
    clock.advance(0.1)
    assert pool.replace_stuck(EngineFailure(), timeout_s=10.0) == 1
    assert pool.replace_stuck(EngineFailure(), timeout_s=10.0) == 0
    assert pool.num_stuck == 1
    with pytest.raises(EngineFailure):
        stuck.result(0)
    together = threading.Barrier(2)
    jobs = [pool.submit(lambda: together.wait(TIMEOUT_S)) for _ in range(2)]
    assert sorted(job.result(TIMEOUT_S) for job in jobs) == [0, 1], "two threads work"
    hang.let_go()


def test_an_abandoned_thread_ends_after_its_job_and_changes_nothing(
    make_pool: MakePool, clock: ManualClock
):
    pool, hang = make_pool(), Hang()
    stuck = pool.submit(hang)
    assert hang.has_begun.wait(TIMEOUT_S)
    clock.advance(10.0)
    pool.replace_stuck(EngineFailure(), timeout_s=10.0)
    [worker] = pool._abandoned
    hang.let_go()
    worker.thread.join(TIMEOUT_S)
    assert pool.num_stuck == 0
    assert isinstance(stuck.exception(0), EngineFailure)


def test_shutdown_does_not_wait_for_stuck_threads(make_pool: MakePool):
    pool, hang = make_pool(), Hang()
    pool.submit(hang)
    assert not pool.shutdown(0.01)
    hang.let_go()


def test_all_jobs_can_be_failed_at_once(make_pool: MakePool):
    pool, hang, done = make_pool(), Hang(), list[str]()
    jobs: list[Future[Any]] = [pool.submit(hang), pool.submit(lambda: done.append("never"))]
    assert hang.has_begun.wait(TIMEOUT_S)
    pool.fail_all(EngineFailure())
    assert all(isinstance(job.exception(0), EngineFailure) for job in jobs)
    hang.let_go()
    assert pool.submit(lambda: "fine").result(TIMEOUT_S) == "fine"
    assert done == []
