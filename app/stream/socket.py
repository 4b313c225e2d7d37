"""One `WS /v1/stream` socket: a `StreamProtocol`, and the engine that does what it wants."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import assert_never

from fastapi import WebSocket

from app.errors import ErrorInfo
from app.http.error_handlers import INTERNAL_ERROR
from app.json.large_json import LargeMessages
from app.settings import Settings
from app.stream.protocol import StreamProtocol
from app.websocket.connection import Connection
from app.websocket.protocol.commands import CancelGeneration, ResumeGeneration, StartGeneration
from streaming import AsyncEngine, Event, Generation
from streaming.errors import StreamingError

logger = logging.getLogger(__name__)


class StreamConnection(Connection[StartGeneration | ResumeGeneration | CancelGeneration, Event]):
    """Serves one accepted socket until either side closes it.

    What a slow client has not taken comes as one larger delta.

    Args:
        websocket: accepted before `run`.
        engine: generates.
        caller: whose generations these are.
        settings: limits.
        large: parses what is too large for the loop.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        websocket: WebSocket,
        *,
        engine: AsyncEngine,
        caller: str,
        settings: Settings,
        large: LargeMessages | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._protocol = StreamProtocol(
            caller=caller,
            token_text=engine.tokenizer.token_text,
            max_streams=settings.max_streams,
            max_messages_per_s=settings.max_messages_per_s,
        )
        super().__init__(
            websocket, self._protocol, settings=settings, caller=caller, large=large, clock=clock
        )
        self._engine = engine
        self._caller = caller
        self._generations: dict[str, Generation] = {}

    def execute(self, command: StartGeneration | ResumeGeneration | CancelGeneration) -> None:
        match command:
            case StartGeneration():
                # A task of its own: a long tokenisation must not hold up a cancel beside it.
                self._tasks.create_task(self._submit(command))
            case ResumeGeneration():
                self._resume(command)
            case CancelGeneration(stream_id):
                self._engine.cancel(self._generations[stream_id])
            case _:
                assert_never(command)

    def forget(self, key: str) -> None:
        del self._generations[key]

    async def _submit(self, command: StartGeneration) -> None:
        try:
            generation = await self._engine.submit(command.request)
        except StreamingError as error:
            self._protocol.receive_refused(command.stream_id, ErrorInfo.of(error))
        except Exception:
            logger.exception("a request could not be submitted")  # and only this one fails
            self._protocol.receive_refused(command.stream_id, INTERNAL_ERROR)
        else:
            # No await since the engine has it: it is never without a follower.
            self._follow(
                command.stream_id, generation, include_empty_deltas=command.include_empty_deltas
            )
        self.notify()

    def _resume(self, command: ResumeGeneration) -> None:
        try:
            generation = self._engine.find(command.generation_id, caller=self._caller)
            self._follow(
                command.stream_id,
                generation,
                after=command.after,
                include_empty_deltas=command.include_empty_deltas,
            )
        except StreamingError as error:
            self._protocol.receive_refused(command.stream_id, ErrorInfo.of(error))

    def _follow(
        self, stream_id: str, generation: Generation, *, after: int = -1, include_empty_deltas: bool
    ) -> None:
        with ExitStack() as stack:
            reader = stack.enter_context(
                self._engine.subscribe(
                    generation,
                    after=after,
                    include_empty_deltas=include_empty_deltas,
                    on_wake=self._wake.set,
                    grace_s=self._settings.disconnect_grace_s,
                )
            )
            self._generations[stream_id] = generation
            self.subscribe(stream_id, reader, stack.pop_all())
        self._protocol.receive_accepted(stream_id, generation)
