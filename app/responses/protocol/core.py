"""The protocol of one `WS /v1/responses`: frames and events in, commands and frames out.

Sans-I/O: no socket, no clock, no await; time is passed in as monotonic seconds. A client's mistake
becomes an `error` event; our own mistake raises an exception.

A `response.create` or a resume begins a turn:

* The turns of a stream run in order, one at a time; the turns of several streams run concurrently.
  Requests without `stream_id` belong to the default stream.
* A turn has exactly one ending: an `error` if it has no response, otherwise the terminal event of
  its response: `response.completed`, `response.incomplete` or `response.failed`. A stream's endings
  come in the order of its turns, so the error of an invalid request waits for the turns before it.
* Errors about limits (`rate_limit_exceeded`, `websocket_stream_limit_reached`) are sent at once,
  and so are errors that belong to no stream.
* Events and errors of a named stream have its `stream_id`; those of the default stream do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeAlias, assert_never

from app.errors import ErrorInfo, RequestRefused
from app.responses.protocol.commands import (
    CancelResponse,
    CreateResponse,
    ResponseCommand,
    ResponseT,
    ResumeResponse,
)
from app.responses.protocol.connection_age import ConnectionAge, Stage
from app.responses.protocol.connection_cache import ConnectionCache
from app.responses.protocol.events import (
    CONNECTION_EXPIRED,
    IMMEDIATE_CODES,
    NOTHING_TO_RESUME,
    TERMINAL_TYPES,
    Event,
    error_event,
    expiring_event,
    is_capacity_error,
    on_stream,
    steer_failed_event,
    too_many_messages,
)
from app.responses.protocol.parsing import is_turn, peek_parent_id, peek_stream_id, to_message
from app.responses.protocol.turn import (
    Create,
    RejectedRequest,
    Resume,
    Turn,
    TurnRequest,
    TurnState,
)
from app.responses.protocol.turn_scheduler import TurnScheduler
from app.responses.schemas.objects import EventObject
from app.responses.schemas.socket import (
    CancelResponseMessage,
    ControlMessage,
    ResumeResponseMessage,
    SteerMessage,
)
from app.websocket.protocol.frames import Close
from app.websocket.protocol.open_stream import RecentIds
from app.websocket.protocol.parsing import Parsed, parse_frame, peek_fields
from app.websocket.protocol.rate_limiter import MessageRateLimiter
from app.websocket.socket_memory import SocketMemory

ParsedFrame: TypeAlias = Parsed[Create | ControlMessage]

MAX_ENDED_IDS = 1024
"""Number of ended responses that are remembered, so that a late cancel is no error."""


class ResponsesProtocol(Generic[ResponseT]):
    """The server side of one connection.

    Args:
        age: limits the age of the connection.
        max_turns: limit of unfinished turns.
        max_messages_per_s: sustained message rate; a burst may begin and cancel every turn.
        resumes: the resumes of the handshake, each with its stream.
        warns_of_expiry: the client asked for the warning that its connection will expire.
        memory: shared with the other sockets. Call `release` when the socket is closed.
    """

    def __init__(
        self,
        *,
        age: ConnectionAge,
        max_turns: int,
        max_messages_per_s: float,
        resumes: Sequence[tuple[str | None, Resume | RejectedRequest]] = (),
        warns_of_expiry: bool = False,
        memory: SocketMemory | None = None,
    ) -> None:
        self._age = age
        self._memory = memory or SocketMemory()
        self._warns_of_expiry = warns_of_expiry
        self._limiter = MessageRateLimiter(
            max_messages_per_s=max_messages_per_s,
            max_burst_messages=max(max_messages_per_s, 2 * max_turns),
        )
        self._scheduler: TurnScheduler[ResponseT] = TurnScheduler(
            max_turns=max_turns, memory=self._memory
        )
        self._cache: ConnectionCache[ResponseT] = ConnectionCache(self._memory)
        self._turns: dict[str, Turn[ResponseT]] = {}
        self._ended_ids = RecentIds(max_ids=MAX_ENDED_IDS)
        self._num_turns = 0
        self._commands: list[ResponseCommand[ResponseT] | Close] = []
        self._outbox: deque[Event] = deque()
        self._is_draining = False
        self._is_expired = False
        self._is_closed = False
        for stream_id, request in resumes:
            try:
                self._begin(request, stream_id)
            except RequestRefused as refused:
                self._outbox.append(error_event(refused.info, stream_id))

    # Input from the client.

    def receive_text(self, frame: str, *, now: float) -> None:
        """Process a text frame; ignored after a `Close` command."""
        if self.admit(frame, now=now):
            self.receive_parsed(self.parse(frame), now=now)

    def receive_bytes(self, frame: bytes, *, now: float) -> None:
        """Process a binary frame as a text frame in UTF-8."""
        if self.admit(frame, now=now):
            self.receive_parsed(self.parse(frame), now=now)

    def admit(self, frame: str | bytes, *, now: float) -> bool:
        """Count a frame against the rate limit; return whether to parse and receive it."""
        self.handle_timeout(now=now)
        if self._is_closed:
            return False
        if retry_after_s := self._limiter.refused_for_s(now=now):
            self._refuse(too_many_messages(retry_after_s), peek_fields(frame))
            return False
        return True

    def parse(self, frame: str | bytes) -> ParsedFrame:
        """Parse an admitted frame. Reads no state, so a worker thread may call it."""
        return parse_frame(frame, to_message)

    def receive_parsed(self, parsed: ParsedFrame, *, now: float) -> None:
        """Process an admitted and parsed frame."""
        self.handle_timeout(now=now)
        if self._is_closed:
            return
        if parsed.refusal is not None:
            self._refuse(parsed.refusal, parsed.fields)
            return
        assert parsed.message is not None
        try:
            self._receive_message(parsed.message, parsed.fields, parsed.num_chars)
        except RequestRefused as refused:
            self._refuse(refused.info, parsed.fields)

    # Input from the socket, which executes the commands.

    def receive_created(self, turn_id: str, response: ResponseT) -> None:
        """Set the response of a turn."""
        turn = self._turns[turn_id]
        turn.move_to(TurnState.CREATED)
        turn.response = response
        if turn.is_cancelled:
            self._commands.append(CancelResponse(turn_id))

    def receive_up_to_date(self, turn_id: str, response: ResponseT | None) -> None:
        """End a resume whose client has all events of the response already.

        Args:
            turn_id: the turn of the resume.
            response: the response; None if it failed, and so cannot be continued.
        """
        turn = self._turns[turn_id]
        assert isinstance(turn.request, Resume)
        if response is not None:
            self._cache.put(response, turn.stream_id)
        self.receive_refused(turn_id, NOTHING_TO_RESUME)

    def receive_refused(self, turn_id: str, info: ErrorInfo) -> None:
        """End a turn that gets no response with an error."""
        turn = self._turns[turn_id]
        assert turn.state is TurnState.SUBMITTED
        self._outbox.append(error_event(info, turn.stream_id))
        self._end(turn, is_failed=not is_capacity_error(info))
        self._start_turns()

    def receive_events(self, turn_id: str, events: Sequence[EventObject], *, now: float) -> None:
        """Send the new events of a turn's response, and end the turn with the terminal event."""
        turn = self._turns[turn_id]
        for event in events:
            assert turn.state is TurnState.CREATED
            turn.sequence_number = event["sequence_number"]
            self._outbox.append(on_stream(event, turn.stream_id))
            if event["type"] in TERMINAL_TYPES:
                assert turn.response is not None
                is_failed = event["type"] == "response.failed"
                if not is_failed:
                    # Before the event is sent: the client may continue the response at once.
                    self._cache.put(turn.response, turn.stream_id)
                self._end(turn, is_failed=is_failed)
        self._start_turns()

    def release(self) -> None:
        """Return the memory that is shared with other sockets. Make no calls after this one."""
        self._cache.clear()
        self._scheduler.release()

    def receive_drain(self) -> None:
        """Close the socket once no turn is open: the server is shutting down."""
        self._is_draining = True
        self._close_if_done()

    # Output.

    @property
    def num_unsent(self) -> int:
        """Number of frames that wait to be sent."""
        return len(self._outbox)

    @property
    def next_timeout_at(self) -> float | None:
        """When to call `handle_timeout` next, in monotonic seconds."""
        return self._age.next_timeout_at

    def handle_timeout(self, *, now: float) -> None:
        """Process the stages of the connection's age that have been reached."""
        for stage in self._age.reached(now=now):
            match stage:
                case Stage.WARNED:
                    if self._warns_of_expiry:
                        self._outbox.append(expiring_event(self._age.expires_at - now))
                case Stage.EXPIRED:
                    self._is_expired = True
                    self._scheduler.reject_waiting(CONNECTION_EXPIRED)
                    self._start_turns()
                case Stage.OVER:
                    self._close_expired()
                case _:
                    assert_never(stage)

    def commands(self) -> list[ResponseCommand[ResponseT] | Close]:
        """Return the new commands, in order."""
        commands, self._commands = self._commands, []
        return commands

    def frames_to_send(self) -> Iterator[Event]:
        """Yield the frames to send, in order, each once."""
        while self._outbox:
            yield self._outbox.popleft()

    # Turns.

    def _receive_message(
        self, message: Create | ControlMessage, fields: dict[str, Any], num_chars: int
    ) -> None:
        match message:
            case Create():
                self._begin(message, peek_stream_id(fields), num_chars=num_chars)
            case ResumeResponseMessage():
                resume = Resume(message.response_id, message.starting_after)
                self._begin(resume, message.stream_id, num_chars=num_chars)
            case CancelResponseMessage():
                self._cancel(message)
            case SteerMessage():
                self._refuse_steer(message)
            case _:
                assert_never(message)

    def _begin(self, request: TurnRequest, stream_id: str | None, *, num_chars: int = 0) -> None:
        """Queue a turn, and start the turns that may run.

        Raises:
            RequestRefused: there are too many turns or streams, or the connection has expired.
        """
        self._scheduler.check_room(num_chars)
        if not isinstance(request, RejectedRequest):
            if self._is_expired:
                raise RequestRefused(CONNECTION_EXPIRED)
            self._scheduler.open_stream(stream_id)
        self._num_turns += 1
        turn: Turn[ResponseT] = Turn(
            f"turn_{self._num_turns}", stream_id=stream_id, request=request, num_chars=num_chars
        )
        if turn.parent_id is not None and not self._cache.is_latest(turn.parent_id, stream_id):
            turn.parent = self._cache.find(turn.parent_id)
        self._scheduler.add(turn)
        self._start_turns()

    def _start_turns(self) -> None:
        while (turn := self._scheduler.start_next()) is not None:
            match turn.request:
                case RejectedRequest(info):
                    self._outbox.append(error_event(info, turn.stream_id))
                    self._end(turn, is_failed=True)
                case Create(body):
                    self._submit(turn)
                    parent = turn.parent or self._cache.find(turn.parent_id)
                    self._commands.append(CreateResponse(turn.turn_id, body, parent))
                case Resume(response_id, starting_after):
                    turn.sequence_number = starting_after
                    self._submit(turn)
                    self._commands.append(ResumeResponse(turn.turn_id, response_id, starting_after))
                case _:
                    assert_never(turn.request)
        self._close_if_done()

    def _submit(self, turn: Turn[ResponseT]) -> None:
        turn.move_to(TurnState.SUBMITTED)
        self._turns[turn.turn_id] = turn

    def _end(self, turn: Turn[ResponseT], *, is_failed: bool) -> None:
        turn.move_to(TurnState.ENDED)
        self._scheduler.end(turn)
        self._turns.pop(turn.turn_id, None)  # a rejected request was never submitted
        if turn.response is not None:
            self._ended_ids.remember(turn.response.response_id)
        parent_id = turn.parent_id
        # A fork that fails leaves the stream of its parent unchanged.
        if is_failed and parent_id is not None and self._cache.is_latest(parent_id, turn.stream_id):
            self._cache.evict(parent_id)

    def _refuse(self, info: ErrorInfo, fields: dict[str, Any]) -> None:
        stream_id = peek_stream_id(fields)
        if not is_turn(fields):
            # With a stream's id it would look like the ending of the turn that runs there.
            self._outbox.append(error_event(info, None))
        elif info.code in IMMEDIATE_CODES:
            self._outbox.append(error_event(info, stream_id))
        else:
            try:
                self._begin(RejectedRequest(info, peek_parent_id(fields)), stream_id)
            except RequestRefused as no_room:
                self._outbox.append(error_event(no_room.info, stream_id))

    def _cancel(self, message: CancelResponseMessage) -> None:
        turn = self._scheduler.first(message.stream_id)
        if message.response_id is not None:
            turn = self._find_turn(message.response_id)
            if turn is None and message.response_id not in self._ended_ids:
                text = f"response_id: no response {message.response_id!r} runs on this connection"
                raise RequestRefused(
                    ErrorInfo(code="response_not_found", message=text, param="response_id")
                )
        if turn is None:
            return  # it ended while the cancel was in transit
        if turn.state is TurnState.CREATED:
            self._commands.append(CancelResponse(turn.turn_id))
        else:
            # Cancel it once it is created, before its first step, so that it has a usual ending.
            turn.is_cancelled = True

    def _refuse_steer(self, message: SteerMessage) -> None:
        turn = self._find_turn(message.previous_response_id)
        self._outbox.append(
            steer_failed_event(
                message.previous_response_id,
                message.input,
                sequence_number=0 if turn is None else max(0, turn.sequence_number),
                stream_id=None if turn is None else turn.stream_id,
            )
        )

    def _find_turn(self, response_id: str) -> Turn[ResponseT] | None:
        for turn in self._turns.values():
            if turn.response_id == response_id:
                return turn
        return None

    def _close_if_done(self) -> None:
        if self._is_closed or len(self._scheduler):
            return
        if self._is_expired:
            self._close_expired()
        elif self._is_draining:
            self._close("the server is going away")

    def _close_expired(self) -> None:
        if not self._is_closed:
            self._outbox.append(error_event(CONNECTION_EXPIRED, None))
            self._close("the connection has reached its maximum age")

    def _close(self, reason: str) -> None:
        self._is_closed = True
        # RFC 6455 §7.4.1: 1001 is "going away"; clients reconnect after it.
        self._commands.append(Close(1001, reason))
