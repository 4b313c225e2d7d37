"""One `WS /v1/responses` socket: a `ResponsesProtocol`, and the service that does what it wants."""

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
from app.responses.protocol.events import Event
from app.responses.protocol.turn import Refusal, Resume
from app.responses.response import AnyResponse, LiveResponse
from app.responses.response_reader import ResponseReader
from app.responses.service import ResponseService
from app.settings import Settings
from app.websocket.connection import Connection
from streaming import Failed
from streaming.errors import StreamingError

logger = logging.getLogger(__name__)

_BAD_CURSOR = ErrorInfo(
    code="invalid_request",
    message="starting_after: the response has had no event of that number yet.",
    param="starting_after",
)
_LOG_GONE = ErrorInfo(
    code="stream_expired",
    message="response_id: the events of this response are no longer kept; it can be fetched.",
    param="response_id",
)


class ResponsesConnection(Connection[ResponseCommand[AnyResponse], Event]):
    """Serves one accepted socket until either side closes it.

    Args:
        websocket: accepted before `run`.
        service: has the responses.
        caller: whose responses these are.
        settings: limits.
        large: parses what is too large for the loop.
        resumes: what the handshake wants to be resumed, each with its lane.
        tells_expiry: the client wants to be warned before its connection is too old.
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
        resumes: Sequence[tuple[str | None, Resume | Refusal]] = (),
        tells_expiry: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._protocol: ResponsesProtocol[AnyResponse] = ResponsesProtocol(
            age=ConnectionAge(opened_at=clock(), max_s=settings.max_connection_s),
            max_turns=settings.max_streams,
            max_messages_per_s=settings.max_messages_per_s,
            resumes=resumes,
            tells_expiry=tells_expiry,
            memory=service.socket_memory,
        )
        super().__init__(
            websocket, self._protocol, settings=settings, caller=caller, large=large, clock=clock
        )
        self._service = service
        self._caller = caller
        self._responses: dict[str, LiveResponse] = {}

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self._protocol.release()

    def execute(self, command: ResponseCommand[AnyResponse]) -> None:
        match command:
            case CreateResponse():
                self._tasks.create_task(self._create(command))
            case ResumeResponse():
                self._tasks.create_task(self._resume(command))
            case CancelResponse(turn_id):
                self._service.stop(self._responses[turn_id])
            case _:
                assert_never(command)

    def forget(self, key: str) -> None:
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
            logger.exception("a response could not be created")  # and only this one fails
            self._protocol.receive_refused(command.turn_id, INTERNAL_ERROR)
        else:
            # No await since the service has it: it is never without a follower.
            with self._following(response) as stack:
                reader = ResponseReader(response.writer(), on_wake=self._wake.set)
                self._accept(command.turn_id, response, reader, stack)
        self.notify()

    async def _resume(self, command: ResumeResponse) -> None:
        turn_id, after = command.turn_id, command.starting_after
        response = self._service.find_live(command.response_id, caller=self._caller)
        if response is None:
            self._protocol.receive_refused(turn_id, await self._why_not(command.response_id))
            self.notify()
            return
        with self._following(response) as stack:  # so its grace ends here, however long this takes
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

    async def _why_not(self, response_id: str) -> ErrorInfo:
        """Return why a response whose log is gone cannot be resumed."""
        try:
            await self._service.find(response_id, caller=self._caller)
        except RequestRefused as refused:
            return refused.info
        return _LOG_GONE

    def _following(self, response: LiveResponse) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(
            self._service.subscribe(
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
