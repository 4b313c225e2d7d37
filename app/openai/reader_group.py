"""Reads the logs of several generations together; `app.openai.answer` uses it for choices."""

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
    """Subscribes to the generations of one HTTP request for the length of a `with` block.

    Leaving the block cancels the generations that have not ended.

    Args:
        engine: runs the generations.
        generations: in the order of the choices; `read` reports each by its index.
        include_empty_deltas: report each token at once, even if it completes no text yet.
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
        self._include_empty_deltas = include_empty_deltas
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
                            include_empty_deltas=self._include_empty_deltas,
                            on_wake=on_wake,
                            grace_s=0,
                        )
                    )
                )
                on_wake()  # read what was logged before the subscription
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_done(self) -> bool:
        """Whether the last event of every generation has been read."""
        return not self._num_open

    async def wait(self, *, timeout_s: float | None = None) -> bool:
        """Return True once a generation has new events, or False after `timeout_s` seconds.

        Without `timeout_s`, wait as long as it takes.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True

    def read(self) -> list[tuple[int, list[Event]]]:
        """Return the index and the new events of each generation that has any, without waiting."""
        self._woken.clear()
        changed, self._changed = self._changed, set()
        batches = [(index, self._readers[index].read()) for index in sorted(changed)]
        self._num_open -= sum(isinstance(event, Ended) for _, events in batches for event in events)
        return [(index, events) for index, events in batches if events]

    async def wait_ended(self) -> None:
        """Wait until all generations have ended.

        Raises:
            RequestRefused: a generation failed; the others may still be running.
        """
        while not self.is_done:
            await self.wait()
            for _, events in self.read():
                if (error := error_of(events)) is not None:
                    raise RequestRefused(ErrorInfo.of(error))

    def _wake(self, index: int) -> None:
        self._changed.add(index)
        self._woken.set()


def error_of(events: Sequence[Event]) -> StreamingError | None:
    """Return the error that ended a generation, or None if these events include none."""
    match events[-1]:
        case Ended(record=Failed(error=error)):
            return error
        case _:
            return None
