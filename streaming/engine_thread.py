"""The thread that drives the engine: commands in, logs that have something new out.

It knows no event loop. What it has to tell, it tells through callbacks, on its own thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from streaming.engine import Engine
from streaming.errors import EngineFailure, StreamingError
from streaming.generation import Generation

logger = logging.getLogger(__name__)


class EngineThread:
    """Steps an engine while it has work, and waits for commands while it has none.

    Args:
        engine: this thread's alone, from `start` until the thread has ended.
        on_step: called after a step with the logs that have something new, if there are any.
        on_death: called last, where the engine cannot go on; `bury` is to be called then.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_step: Callable[[list[Generation]], None],
        on_death: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._on_step = on_step
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_stopping = False  # read and written by the thread
        self._thread = threading.Thread(target=self._run, name="tokenwire-engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def put(self, command: Callable[[], None]) -> None:
        """Have `command` run on the thread, before its next step."""
        self._inbox.put(command)

    def stop(self, error: StreamingError) -> None:
        """End all logs with `error`, and then the thread."""

        def stop() -> None:
            self._is_stopping = True
            self._engine.fail_all(error)

        self.put(stop)

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def bury(self) -> list[Generation]:
        """End all logs after `on_death`, on any thread, and return them."""
        self._engine.abandon(EngineFailure())
        # What is still in the inbox can now reach nothing that has run, so no command touches the
        # runner again. Requests among them end as the others did.
        self._take_commands(wait=False)
        self._engine.abandon(EngineFailure())
        return self._engine.take_touched()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._take_commands(wait=not self._engine.has_work)
                if touched := self._engine.step():
                    self._on_step(touched)
        except Exception:
            logger.exception("the engine failed and takes no more work")
            self._on_death()

    def _take_commands(self, *, wait: bool) -> None:
        if wait:
            self._inbox.get()()
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            command()
