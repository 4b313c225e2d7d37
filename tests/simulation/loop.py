"""asyncio's own event loop in a simulated world: its callbacks, its order, no operating system."""

from __future__ import annotations

import asyncio
from asyncio import base_events
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from tests.simulation.world import SimulatedThread, World


async def pause(seconds: float) -> None:
    """Let so much simulated time pass."""
    loop = asyncio.get_running_loop()
    is_over = loop.create_future()
    timer = loop.call_later(seconds, is_over.set_result, None)
    try:
        await is_over
    finally:
        timer.cancel()


class _Selector:
    """Waits as a selector does that has nothing but timers and the loop's own wake-up."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_woken = False

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None or timeout > 0:
            self._world.wait(lambda: self.is_woken, timeout_s=timeout)
        else:
            self._world.wait(lambda: True)
        self.is_woken = False
        return []


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    _num_made = 0

    def __init__(self, coroutine: Any, **options: Any) -> None:
        _Task._num_made += 1
        self._number = _Task._num_made
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedLoop(base_events.BaseEventLoop):
    """Runs on the world's first thread; what it gives to executors runs on threads of the world."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._selector = _Selector(world)
        self._clock_resolution = 1e-9
        _Task._num_made = 0
        self.set_task_factory(
            lambda loop, coroutine, **options: _Task(coroutine, loop=loop, **options)
        )
        self.failures: list[BaseException | str] = []
        self.set_exception_handler(
            lambda _, context: self.failures.append(context.get("exception") or context["message"])
        )

    def time(self) -> float:
        return self._world.time

    def run_in_executor(  # type: ignore[override]
        self, _: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run it on a thread of its own, at a time of the seed's choice."""
        future = self.create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def run() -> None:
            self._world.sleep(self._world.rng.expovariate(200))
            result, error = None, None
            try:
                result = func(*args)
            except Exception as raised:  # noqa: BLE001 - the future's
                error = raised
            self.call_soon_threadsafe(finish, result, error)

        SimulatedThread(self._world, run, "worker").start()
        return future

    def _process_events(self, _: list[Any]) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        self._selector.is_woken = True
