from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.transport.parsing_queue import ParsingQueue
from tests.support import ManualClock, yield_to_loop


class Job:
    """Takes a millisecond."""

    def __init__(self, clock: ManualClock, done: list[Any], name: object) -> None:
        self._clock, self._done, self._name = clock, done, name

    def work(self) -> None:
        self._clock.advance(0.001)
        self._done.append(self._name)


async def test_work_runs_at_once_until_the_budget_is_used_up() -> None:
    clock, done = ManualClock(), list[Any]()
    queue = ParsingQueue(budget_s=0.002, clock=clock)
    for name in range(7):
        queue.submit(Job(clock, done, name).work)
    assert done == [0, 1]
    await yield_to_loop()
    assert done == [0, 1, 2, 3]
    await yield_to_loop()
    await yield_to_loop()
    assert done == [*range(7)]


async def test_each_loop_iteration_has_a_budget_of_its_own() -> None:
    clock, done = ManualClock(), list[Any]()
    queue = ParsingQueue(budget_s=0.002, clock=clock)
    for name in range(5):
        queue.submit(Job(clock, done, name).work)
        assert done[-1] == name
        await yield_to_loop()


async def test_queued_work_is_not_added_again() -> None:
    clock, done = ManualClock(), list[Any]()
    queue = ParsingQueue(budget_s=0.001, clock=clock)
    queue.submit(Job(clock, done, "first").work)
    again = Job(clock, done, "again")
    for _ in range(3):
        queue.submit(again.work)
    for _ in range(4):
        await yield_to_loop()
    assert done == ["first", "again"]


async def test_new_work_runs_before_unfinished_work_but_does_not_starve_it() -> None:
    clock, done = ManualClock(), list[Any]()
    queue = ParsingQueue(budget_s=0.001, clock=clock)

    def long() -> None:
        Job(clock, done, "long").work()
        if done.count("long") < 3:
            queue.resubmit(long)

    queue.submit(long)
    for name in range(5):
        queue.submit(Job(clock, done, name).work)
    for _ in range(8):
        await yield_to_loop()
    assert done == ["long", 0, 1, 2, "long", 3, 4, "long"]


async def test_addresses_are_served_round_robin() -> None:
    clock, done = ManualClock(), list[Any]()
    queue = ParsingQueue(budget_s=0.001, clock=clock)
    queue.submit(Job(clock, done, "first").work, address="a")
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queue.submit(Job(clock, done, name).work, address=name[0])
    for _ in range(7):
        await yield_to_loop()
    assert done == ["first", "a1", "b1", "c1", "a2", "b2", "a3"]


async def test_work_that_is_submitted_by_work_runs_later() -> None:
    queue, done = ParsingQueue(budget_s=1.0), list[str]()

    def outer() -> None:
        queue.submit(lambda: done.append("inner"))
        done.append("outer")

    queue.submit(outer)
    await yield_to_loop()
    assert done == ["outer", "inner"]


async def test_a_failure_does_not_stop_other_work() -> None:
    clock, done = ManualClock(), list[Any]()
    queue = ParsingQueue(budget_s=0.001, clock=clock)
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fail() -> None:
        raise ZeroDivisionError

    queue.submit(Job(clock, done, 0).work)
    queue.submit(fail)
    queue.submit(Job(clock, done, 1).work)
    for _ in range(3):
        await yield_to_loop()
    assert done == [0, 1]
    assert len(failures) == 1


async def test_work_that_runs_at_once_may_raise() -> None:
    queue = ParsingQueue()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        queue.submit(fail)
