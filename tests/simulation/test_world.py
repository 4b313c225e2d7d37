"""The simulated world: thread switches, time, event loop, and the end of a failed run."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from tests.simulation.loop import SimulatedLoop, pause
from tests.simulation.world import Deadlock, World

HERE = frozenset({__file__})


def run_loop(world: World, coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop = SimulatedLoop(world)
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()
        world.close()


class Account:
    """Adds in two lines, between which the thread may be preempted."""

    def __init__(self) -> None:
        self.total = 0

    def add(self) -> None:
        total = self.total
        self.total = total + 1


def paid_in(seed: int) -> int:
    """Return the sum after two threads have added 1 twenty times each."""
    world, account = World(seed, watched=HERE), Account()

    def pay() -> None:
        for _ in range(20):
            account.add()

    threads = [world.make_thread(pay, name=name) for name in "ab"]
    for thread in threads:
        thread.start()
        assert thread.is_alive()
    for thread in threads:
        thread.join()
        assert not thread.is_alive()
    world.close()
    return account.total


def test_threads_switch_between_two_lines_where_the_seed_decides():
    totals = [paid_in(seed) for seed in range(20)]
    assert min(totals) < 40, "no addition was ever lost"
    assert max(totals) == 40
    assert totals == [paid_in(seed) for seed in range(20)]


def test_a_watched_file_that_does_not_exist_is_an_error():
    with pytest.raises(AssertionError, match="no such files to watch"):
        World(1, watched=frozenset({"moved.py"}))


def test_time_advances_while_all_threads_wait():
    world, woken = World(1, watched=frozenset()), list[tuple[str, float]]()
    began_at = world.now()

    def sleep(name: str, seconds: float) -> None:
        world.sleep(seconds)
        woken.append((name, world.now() - began_at))

    for name, seconds in (("long", 100.0), ("short", 1.0)):
        world.make_thread(lambda name=name, s=seconds: sleep(name, s), name=name).start()  # type: ignore[misc]
    world.sleep(1000.0)
    world.close()
    assert woken == [("short", 1.0), ("long", 100.0)]
    assert world.now() == began_at + 1000.0


def test_an_inbox_waits_for_a_command_or_a_timeout():
    world, done = World(1, watched=frozenset()), list[str]()
    inbox = world.make_inbox()
    with pytest.raises(queue.Empty):
        inbox.get_nowait()
    began_at = world.now()
    with pytest.raises(queue.Empty):
        inbox.get(timeout=5.0)
    assert world.now() == began_at + 5.0
    world.make_thread(lambda: inbox.put(lambda: done.append("a")), name="putter").start()
    inbox.get()()
    assert done == ["a"]
    world.close()


def test_a_deadlock_is_detected():
    world = World(1, watched=frozenset())
    world.make_thread(lambda: world.make_inbox().get()(), name="stuck").start()
    with pytest.raises(Deadlock, match="loop, stuck"):
        world.make_inbox().get()
    with pytest.raises(Deadlock):
        world.close()
    assert not [thread for thread in threading.enumerate() if "stuck" in thread.name]


def test_a_leftover_thread_is_detected():
    world = World(1, watched=frozenset())
    world.make_thread(lambda: world.make_inbox().get()(), name="left").start()
    world.wait(lambda: True)
    with pytest.raises(AssertionError, match="threads are left: left"):
        world.close()
    assert not [thread for thread in threading.enumerate() if "left" in thread.name]


def test_an_exception_in_a_thread_ends_the_run():
    world = World(1, watched=frozenset())
    world.make_thread(lambda: 1 // 0, name="broken").start()  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        world.sleep(1.0)
    with pytest.raises(ZeroDivisionError):
        world.close()


# The loop.


def test_the_loop_keeps_asyncios_order_and_skips_to_its_timers():
    world, order = World(1, watched=frozenset()), list[object]()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        for seconds in (2.0, 1.0):
            loop.call_later(seconds, order.append, seconds)
        loop.call_soon(order.append, "first")
        loop.call_soon(order.append, "second")
        loop.call_later(0.5, order.append, "never").cancel()
        await pause(60.0)
        order.append(loop.time() - began_at)

    run_loop(world, main())
    assert order == ["first", "second", 1.0, 2.0, 60.0]


def test_executor_work_runs_on_a_thread_and_returns_its_result():
    world, names = World(1, watched=frozenset()), list[str]()

    def work() -> int:
        names.append(threading.current_thread().name)
        return 7

    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        cancelled = asyncio.ensure_future(asyncio.to_thread(work))
        await pause(0.0)
        cancelled.cancel()
        with suppress(asyncio.CancelledError):
            await cancelled
        result = await asyncio.to_thread(work)
        await pause(10.0)
        return result

    assert run_loop(world, main()) == 7
    assert names == ["simulated-worker"] * 2


def test_a_thread_wakes_a_waiting_loop():
    world = World(1, watched=frozenset())

    async def main() -> str:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[str] = loop.create_future()

        def wake() -> None:
            world.sleep(5.0)
            loop.call_soon_threadsafe(woken.set_result, "awake")

        world.make_thread(wake, name="waker").start()
        return await woken

    assert run_loop(world, main()) == "awake"


def test_a_loop_that_waits_forever_is_detected():
    world = World(1, watched=frozenset())

    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run_loop(world, main())
