"""Several logs, read as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

from app.errors import ErrorInfo, RequestRefused
from streaming import AsyncEngine, Ended, Event, Failed, Generation, Reader
from streaming.errors import StreamingError


class ReaderGroup:
    """Follows the logs of one REST request; those still open are cancelled when it is left.

    Args:
        include_empty_deltas: also report tokens that show no text yet.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        generations: Sequence[Generation],
        *,
        include_empty_deltas: bool = False,
    ) -> None:
        self._engine = engine
        self._generations = generations
        self._every_token = include_empty_deltas
        self._readers: list[Reader] = []
        self._stack = ExitStack()
        self._woken = asyncio.Event()
        self._changed: set[int] = set()
        self._num_open = len(generations)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for index, generation in enumerate(self._generations):
                on_wake = partial(self._wake, index)
                self._readers.append(
                    stack.enter_context(
                        self._engine.subscribe(
                            generation,
                            include_empty_deltas=self._every_token,
                            on_wake=on_wake,
                            grace_s=0,
                        )
                    )
                )
                on_wake()  # what came before we listened
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_done(self) -> bool:
        """Whether every log's end has been read."""
        return not self._num_open

    async def wait(self, *, timeout_s: float | None = None) -> bool:
        """Wait until a log has something new; return False if none had in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True

    def read(self) -> list[tuple[int, list[Event]]]:
        """Return the place of each log that has something new, and what; never waits."""
        self._woken.clear()
        changed, self._changed = self._changed, set()
        news = [(index, self._readers[index].read()) for index in sorted(changed)]
        self._num_open -= sum(isinstance(event, Ended) for _, events in news for event in events)
        return [(index, events) for index, events in news if events]

    async def wait_ended(self) -> None:
        """Wait until all have ended.

        Raises:
            RequestRefused: one has failed; the others are not waited for.
        """
        while not self.is_done:
            await self.wait()
            for _, events in self.read():
                if (error := failure(events)) is not None:
                    raise RequestRefused(ErrorInfo.of(error))

    def _wake(self, index: int) -> None:
        self._changed.add(index)
        self._woken.set()


def failure(events: Sequence[Event]) -> StreamingError | None:
    """Return what a log ended with, if these events hold its end and that is an error."""
    match events[-1]:
        case Ended(record=Failed(error=error)):
            return error
        case _:
            return None
