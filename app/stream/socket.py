"""One `WS /v1/stream` socket: executes the commands of its `StreamProtocol` on the engine."""

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
from app.stream.protocol import (
    CancelGeneration,
    EngineCommand,
    ResumeGeneration,
    StartGeneration,
    StreamProtocol,
)
from app.websocket.connection import Connection
from streaming import AsyncEngine, Event, Generation
from streaming.errors import StreamingError

logger = logging.getLogger(__name__)


class StreamConnection(Connection[EngineCommand, Event]):
    """Serves one accepted socket until either side closes it.

    Text that a slow client has not received yet is merged into one larger delta.

    Args:
        websocket: accepted before `run`.
        engine: runs the generations.
        caller: owner of the generations.
        settings: limits.
        large: parses frames that are too large for the event loop.
        clock: returns monotonic seconds.
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
        self._generations: dict[str, Generation] = {}

    def execute(self, command: EngineCommand) -> None:
        """Submit, resume or cancel a generation."""
        match command:
            case StartGeneration():
                # A separate task, so that a long tokenization does not delay other messages.
                self._tasks.create_task(self._submit(command))
            case ResumeGeneration():
                self._resume(command)
            case CancelGeneration(stream_id):
                self._engine.cancel(self._generations[stream_id])
            case _:
                assert_never(command)

    def forget(self, key: str) -> None:
        """Drop the generation of the ended stream `key`."""
        del self._generations[key]

    async def _submit(self, command: StartGeneration) -> None:
        try:
            generation = await self._engine.submit(command.request)
        except StreamingError as error:
            self._protocol.receive_refused(command.stream_id, ErrorInfo.of(error))
        except Exception:
            logger.exception("could not submit a request")  # fails this stream only
            self._protocol.receive_refused(command.stream_id, INTERNAL_ERROR)
        else:
            # No await after `submit` returns, so the generation always has a subscriber.
            self._subscribe(
                command.stream_id, generation, include_empty_deltas=command.include_empty_deltas
            )
        self.notify()

    def _resume(self, command: ResumeGeneration) -> None:
        try:
            generation = self._engine.find(command.generation_id, caller=self._caller)
            self._subscribe(
                command.stream_id,
                generation,
                after=command.after,
                include_empty_deltas=command.include_empty_deltas,
            )
        except StreamingError as error:
            self._protocol.receive_refused(command.stream_id, ErrorInfo.of(error))

    def _subscribe(
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
