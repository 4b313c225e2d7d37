"""asyncio's event loop in a simulated world: real callbacks and order, without I/O."""

from __future__ import annotations

import asyncio
from asyncio import base_events
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from tests.simulation.world import SimulatedThread, World


async def pause(seconds: float) -> None:
    """Sleep for `seconds` of simulated time."""
    loop = asyncio.get_running_loop()
    is_over = loop.create_future()
    timer = loop.call_later(seconds, is_over.set_result, None)
    try:
        await is_over
    finally:
        timer.cancel()


class _Selector:
    """A selector without files: it waits for the timeout or the loop's wake-up."""

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
    """A task whose hash is its number, so that the order of a set of tasks is reproducible."""

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
    """Runs on the world's first thread; executor calls run on other threads of the world."""

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
        """Run `func` on a new simulated thread, after a random delay."""
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
            except Exception as raised:  # noqa: BLE001 - set on the future
                error = raised
            self.call_soon_threadsafe(finish, result, error)

        SimulatedThread(self._world, run, "worker").start()
        return future

    def _process_events(self, _: list[Any]) -> None:
        """Do nothing: there are no files."""

    def _write_to_self(self) -> None:
        self._selector.is_woken = True
