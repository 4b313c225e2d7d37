"""One `WS /v1/responses` socket: executes the commands of a `ResponsesProtocol`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import assert_never

from fastapi import WebSocket

from app.errors import ErrorInfo, RequestRefused
from app.http.error_handlers import INTERNAL_ERROR
from app.json.large_json import LargeMessages
from app.responses.protocol.commands import (
    CancelResponse,
    CreateResponse,
    ResponseCommand,
    ResumeResponse,
)
from app.responses.protocol.connection_age import ConnectionAge
from app.responses.protocol.core import ResponsesProtocol
from app.responses.protocol.turn import RejectedRequest, Resume
from app.responses.response import AnyResponse, LiveResponse
from app.responses.response_reader import ResponseReader
from app.responses.schemas.objects import EventObject
from app.responses.service import ResponseService
from app.settings import Settings
from app.websocket.connection import Connection
from streaming import Failed
from streaming.errors import StreamingError

logger = logging.getLogger(__name__)

_BAD_CURSOR = ErrorInfo(
    code="invalid_request",
    message="starting_after: the response has no event of this number yet.",
    param="starting_after",
)
_LOG_GONE = ErrorInfo(
    code="stream_expired",
    message="response_id: this response ended too long ago to be resumed; retrieve it over HTTP.",
    param="response_id",
)


class ResponsesConnection(Connection[ResponseCommand[AnyResponse], EventObject]):
    """Serves one accepted socket until either side closes it.

    Args:
        websocket: accepted before `run`.
        service: creates the responses; its registry has them all.
        caller: who owns the responses.
        settings: limits.
        large: parses frames that are too large for the event loop.
        resumes: the resumes of the handshake, each with its stream.
        warns_of_expiry: the client asked for the warning that its connection will expire.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        websocket: WebSocket,
        *,
        service: ResponseService,
        caller: str,
        settings: Settings,
        large: LargeMessages | None = None,
        resumes: Sequence[tuple[str | None, Resume | RejectedRequest]] = (),
        warns_of_expiry: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._protocol: ResponsesProtocol[AnyResponse] = ResponsesProtocol(
            age=ConnectionAge(opened_at=clock(), max_s=settings.max_connection_s),
            max_turns=settings.max_streams,
            max_messages_per_s=settings.max_messages_per_s,
            resumes=resumes,
            warns_of_expiry=warns_of_expiry,
            memory=service.registry.socket_memory,
        )
        super().__init__(
            websocket, self._protocol, settings=settings, caller=caller, large=large, clock=clock
        )
        self._service = service
        self._registry = service.registry
        self._caller = caller
        self._responses: dict[str, LiveResponse] = {}

    async def run(self) -> None:
        """Serve the socket until it is closed."""
        try:
            await super().run()
        finally:
            self._protocol.release()

    def execute(self, command: ResponseCommand[AnyResponse]) -> None:
        """Execute a command of the protocol, in a task if it takes time."""
        match command:
            case CreateResponse():
                self._tasks.create_task(self._create(command))
            case ResumeResponse():
                self._tasks.create_task(self._resume(command))
            case CancelResponse(turn_id):
                self._registry.stop(self._responses[turn_id])
            case _:
                assert_never(command)

    def forget(self, key: str) -> None:
        """Forget the response of a turn that has ended; `key` is the turn's id."""
        del self._responses[key]

    async def _create(self, command: CreateResponse[AnyResponse]) -> None:
        try:
            response = await self._service.create(
                command.body, caller=self._caller, parent=command.parent
            )
        except RequestRefused as refused:
            self._protocol.receive_refused(command.turn_id, refused.info)
        except StreamingError as error:
            self._protocol.receive_refused(command.turn_id, ErrorInfo.of(error))
        except Exception:
            logger.exception("a response could not be created")  # the other turns continue
            self._protocol.receive_refused(command.turn_id, INTERNAL_ERROR)
        else:
            # No await since the response was registered: without a subscriber it is cancelled.
            with self._subscribed(response) as stack:
                reader = ResponseReader(response.writer(), on_wake=self._wake.set)
                self._accept(command.turn_id, response, reader, stack)
        self.notify()

    async def _resume(self, command: ResumeResponse) -> None:
        turn_id, after = command.turn_id, command.starting_after
        response = self._registry.find_live(command.response_id, caller=self._caller)
        if response is None:
            self._protocol.receive_refused(turn_id, await self._resume_error(command.response_id))
            self.notify()
            return
        with self._subscribed(response) as stack:  # the response's grace period is over now
            writer = response.writer(after=after)
            reader = ResponseReader(writer, on_wake=self._wake.set)
            has_more = await asyncio.to_thread(reader.skip)
            if not has_more and writer.is_done:
                has_failed = isinstance(response.generation.outcome, Failed)
                self._protocol.receive_up_to_date(turn_id, None if has_failed else response)
            elif not has_more and after >= writer.num_events:
                self._protocol.receive_refused(turn_id, _BAD_CURSOR)
            else:
                self._accept(turn_id, response, reader, stack)
        self.notify()

    async def _resume_error(self, response_id: str) -> ErrorInfo:
        """Return the error for a response whose log is no longer in memory."""
        try:
            await self._registry.find(response_id, caller=self._caller)
        except RequestRefused as refused:
            return refused.info
        return _LOG_GONE

    def _subscribed(self, response: LiveResponse) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(
            self._registry.subscribe(
                response, on_wake=self._wake.set, grace_s=self._settings.disconnect_grace_s
            )
        )
        return stack

    def _accept(
        self, turn_id: str, response: LiveResponse, reader: ResponseReader, stack: ExitStack
    ) -> None:
        self._responses[turn_id] = response
        self.subscribe(turn_id, reader, stack.pop_all())
        self._protocol.receive_created(turn_id, response)
