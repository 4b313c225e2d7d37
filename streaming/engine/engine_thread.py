"""The one thread that computes: it loads the model, and then it drives the engine.

Each thread that enters an OpenMP region keeps a pool of its own, and libgomp's barriers stop
spinning once all pools together have more threads than there are CPUs: a model that is loaded on
one thread and stepped on another runs at half of its speed. So all computing with torch is here.

The thread knows no event loop. It reports through callbacks, which it calls itself.
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
    """Runs commands in their order, and steps an engine while that has work.

    Args:
        host: gives time, the thread and its inbox.
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
        """When the command or step began that runs now; None while the thread waits. Written by the
        thread, read by any."""
        self._thread = host.make_thread(self._run, name="tokenwire-engine")

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def call(self, work: Callable[[], T]) -> T:
        """Run `work` on the thread and return what it returns, or raise what it raises."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
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
            engine: this thread's alone until the thread has ended.
            on_step: called after a step with the logs that have something new, if there are any.
            on_death: called last, where the engine cannot go on; then call `bury`.
        """

        def begin() -> None:
            self._engine, self._on_step, self._on_death = engine, on_step, on_death

        self.put(begin)

    def put(self, command: Callable[[], None]) -> None:
        """Have `command` run on the thread, before its next step."""
        self._inbox.put(command)

    def stop(self, error: StreamingError) -> None:
        """End all logs with `error`, and then the thread."""

        def stop() -> None:
            self._is_stopping = True
            if self._engine is not None:
                self._engine.fail_all(error)

        self.put(stop)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread, at most so long; return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self.is_alive

    def bury(self) -> list[Generation]:
        """End all logs after `on_death`, on any thread, and return them."""
        assert self._engine is not None
        self._engine.abandon(EngineFailure())
        # What is still in the inbox can now reach nothing that has run, so no command touches the
        # runner again. Requests among them end as the others did.
        while not self._inbox.empty():
            try:
                self._take_commands(wait=False)
            except BaseException:  # the engine is broken already
                logger.exception("a command failed after the engine had")
        self._engine.abandon(EngineFailure())
        return self._engine.take_touched()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._take_commands(wait=self._engine is None or not self._engine.has_work)
                if self._engine is not None:
                    self._step(self._engine)
        except BaseException:  # a panic of a Rust library is no Exception
            logger.exception("the engine failed and takes no more work")
            self._on_death()

    def _step(self, engine: Engine) -> None:
        self.busy_since = self._clock()
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
