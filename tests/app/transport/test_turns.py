from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.transport.turns import Turns
from tests.support import ManualClock, yield_to_loop


class Job:
    """Takes a millisecond."""

    def __init__(self, clock: ManualClock, done: list[Any], name: object) -> None:
        self._clock, self._done, self._name = clock, done, name

    def work(self) -> None:
        self._clock.advance(0.001)
        self._done.append(self._name)


async def test_work_runs_at_once_until_the_turn_has_no_time_left() -> None:
    clock, done = ManualClock(), list[Any]()
    turns = Turns(budget_s=0.002, clock=clock)
    for name in range(7):
        turns.run(Job(clock, done, name).work)
    assert done == [0, 1]
    await yield_to_loop()
    assert done == [0, 1, 2, 3]
    await yield_to_loop()
    await yield_to_loop()
    assert done == [*range(7)]


async def test_each_turn_has_a_budget_of_its_own() -> None:
    clock, done = ManualClock(), list[Any]()
    turns = Turns(budget_s=0.002, clock=clock)
    for name in range(5):
        turns.run(Job(clock, done, name).work)
        assert done[-1] == name
        await yield_to_loop()


async def test_work_that_waits_is_not_added_again() -> None:
    clock, done = ManualClock(), list[Any]()
    turns = Turns(budget_s=0.001, clock=clock)
    turns.run(Job(clock, done, "first").work)
    again = Job(clock, done, "again")
    for _ in range(3):
        turns.run(again.work)
    for _ in range(4):
        await yield_to_loop()
    assert done == ["first", "again"]


async def test_what_is_new_goes_before_the_rest_of_what_is_long() -> None:
    clock, done = ManualClock(), list[Any]()
    turns = Turns(budget_s=0.001, clock=clock)

    def long() -> None:
        Job(clock, done, "long").work()
        if done.count("long") < 3:
            turns.go_on(long)

    turns.run(long)
    for name in range(5):
        turns.run(Job(clock, done, name).work)
    for _ in range(8):
        await yield_to_loop()
    assert done == ["long", 0, 1, 2, "long", 3, 4, "long"]  # but does not starve it


async def test_addresses_take_turns() -> None:
    clock, done = ManualClock(), list[Any]()
    turns = Turns(budget_s=0.001, clock=clock)
    turns.run(Job(clock, done, "first").work, address="a")
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        turns.run(Job(clock, done, name).work, address=name[0])
    for _ in range(7):
        await yield_to_loop()
    assert done == ["first", "a1", "b1", "c1", "a2", "b2", "a3"]


async def test_work_never_runs_inside_of_work() -> None:
    turns, done = Turns(budget_s=1.0), list[str]()

    def outer() -> None:
        turns.run(lambda: done.append("inner"))
        done.append("outer")

    turns.run(outer)
    await yield_to_loop()
    assert done == ["outer", "inner"]


async def test_a_failure_holds_up_nobody_else() -> None:
    clock, done = ManualClock(), list[Any]()
    turns = Turns(budget_s=0.001, clock=clock)
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fail() -> None:
        raise ZeroDivisionError

    turns.run(Job(clock, done, 0).work)
    turns.run(fail)
    turns.run(Job(clock, done, 1).work)
    for _ in range(3):
        await yield_to_loop()
    assert done == [0, 1]
    assert len(failures) == 1


async def test_what_is_run_at_once_may_fail() -> None:
    turns = Turns()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        turns.run(fail)
