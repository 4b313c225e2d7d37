"""The thread that loads the model and then drives the engine; all torch computation runs here.

Each thread that enters an OpenMP region keeps its own thread pool, and libgomp's barriers stop
spinning once all pools together have more threads than there are CPUs. A model that is loaded on
one thread and stepped on another therefore runs at half its speed.

This module does not import asyncio. It reports through callbacks, called on the thread itself;
`AsyncEngine` passes them on to the event loop.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from streaming.engine.engine import Engine
from streaming.errors import EngineFailure, StreamingError
from streaming.host import OPERATING_SYSTEM, Host, Inbox
from streaming.log.generation import Generation

T = TypeVar("T")
logger = logging.getLogger(__name__)


class EngineThread:
    """Runs commands in order, and steps an engine while it has work.

    Args:
        host: provides the clock, the thread and its inbox.
    """

    def __init__(self, *, host: Host = OPERATING_SYSTEM) -> None:
        self._clock = host.now
        self._inbox: Inbox[Callable[[], None]] = host.make_inbox()
        # Read and written by the thread.
        self._engine: Engine | None = None
        self._on_step: Callable[[list[Generation]], None] = lambda _: None
        self._on_death: Callable[[], None] = lambda: None
        self._is_stopping = False
        self.busy_since: float | None = None
        """When the current command or step started, in monotonic seconds; None while the thread is
        idle. Written by the thread, read by any."""
        self._thread = host.make_thread(self._run, name="tokenwire-engine")

    @property
    def is_alive(self) -> bool:
        """Whether the thread has started and not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread. Call this once."""
        self._thread.start()

    def call(self, work: Callable[[], T]) -> T:
        """Run `work` on the thread, wait, and return its result or raise its exception."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised in the caller
                done.set_exception(error)

        self.put(run)
        return done.result()

    def drive(
        self,
        engine: Engine,
        *,
        on_step: Callable[[list[Generation]], None],
        on_death: Callable[[], None],
    ) -> None:
        """Step `engine` from now on.

        Args:
            engine: used by this thread only, until the thread has ended.
            on_step: called with the logs that have new records, if there are any: after a step, and
                before it for those that a command has ended.
            on_death: called last, if the engine cannot continue. Call `fail_all_logs` then.
        """

        def begin() -> None:
            self._engine, self._on_step, self._on_death = engine, on_step, on_death

        self.put(begin)

    def put(self, command: Callable[[], None]) -> None:
        """Queue `command` to run on the thread before its next step."""
        self._inbox.put(command)

    def stop(self, error: StreamingError) -> None:
        """End all logs with `error`, then the thread."""

        def stop() -> None:
            self._is_stopping = True
            if self._engine is not None:
                self._engine.fail_all(error)

        self.put(stop)

    def join(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for the thread to end, and return whether it has."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self.is_alive

    def fail_all_logs(self) -> list[Generation]:
        """End all logs after `on_death`, and return them. May be called on any thread."""
        assert self._engine is not None
        self._engine.fail_all_logs(EngineFailure())
        # Run the commands that are left. The engine holds no sequence that has run, so none of them
        # can reach the runner. They may add requests, which fail like the others.
        while not self._inbox.empty():
            try:
                self._take_commands(wait=False)
            except BaseException:  # the engine has failed already; end the other logs
                logger.exception("a command failed after the engine had failed")
        self._engine.fail_all_logs(EngineFailure())
        return self._engine.take_touched()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._take_commands(wait=self._engine is None or not self._engine.has_work)
                if self._engine is not None:
                    self._step(self._engine)
        except BaseException:  # a panic in a Rust library is not an Exception
            logger.exception("the engine has failed and accepts no more work")
            self._on_death()

    def _step(self, engine: Engine) -> None:
        self.busy_since = self._clock()
        if touched := engine.take_touched():
            self._on_step(touched)  # ended by a command; must not wait for the step
        if touched := engine.step():
            self._on_step(touched)

    def _take_commands(self, *, wait: bool) -> None:
        if wait:
            self.busy_since = None
            command = self._inbox.get()
            self.busy_since = self._clock()
            command()
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            self.busy_since = self._clock()
            command()
