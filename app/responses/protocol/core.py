"""The conversation on one `WS /v1/responses`: frames and events in, commands and frames out.

No socket, no clock, no await: time is passed in as monotonic seconds. What a client does wrong is
data, an `error` event; what our own code does wrong is an exception.

Rules of a turn, which a `response.create` or a resume begins:

* The turns of one lane run in the order in which they came, one at a time; those of several lanes
  run side by side. The lane without a name is one of them.
* A turn has exactly one ending: an `error` if it has no response, and else the response's own
  `response.completed`, `response.incomplete` or `response.failed`. The endings of a lane come in
  the order of its turns, so a request that is refused for what it says is refused in its turn.
* What is refused for how much there is (`rate_limit_exceeded`, `websocket_stream_limit_reached`) is
  refused at once, and so is what belongs to no lane.
* Events and errors of a named lane have its `stream_id`; those of the lane without a name do not.
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
    TERMINAL_TYPES,
    Event,
    error_event,
    expiring_event,
    on_lane,
    steer_failed_event,
)
from app.responses.protocol.lanes import Lanes
from app.responses.protocol.parsing import (
    attempted_lane,
    attempted_parent,
    is_turn,
    to_message,
)
from app.responses.protocol.turn import Create, Refusal, Resume, Turn, TurnState
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
_AT_ONCE = frozenset({"rate_limit_exceeded", "websocket_stream_limit_reached", "invalid_stream_id"})
"""What is refused with these does not wait for its turn."""

_LIMIT_REACHED = ErrorInfo(
    code="websocket_connection_limit_reached",
    message="This connection has reached the age that it may; go on with a new one.",
)
_NOTHING_TO_RESUME = ErrorInfo(
    code="nothing_to_resume",
    message="starting_after: that was the response's last event; there is nothing to resume.",
    param="starting_after",
)


class ResponsesProtocol(Generic[ResponseT]):
    """The server's end of one conversation.

    Args:
        age: how old the connection may become.
        max_turns: turns that have not ended.
        max_messages_per_s: messages in the long run; a burst may begin and cancel every turn.
        resumes: what the handshake wants to be resumed, each with its lane.
        tells_expiry: the client wants to be warned before its connection is too old.
        memory: shared with the other sockets. Call `release` when the socket is closed.
    """

    def __init__(
        self,
        *,
        age: ConnectionAge,
        max_turns: int,
        max_messages_per_s: float,
        resumes: Sequence[tuple[str | None, Resume | Refusal]] = (),
        tells_expiry: bool = False,
        memory: SocketMemory | None = None,
    ) -> None:
        self._age = age
        self._memory = memory or SocketMemory()
        self._tells_expiry = tells_expiry
        self._limiter = MessageRateLimiter(
            max_messages_per_s=max_messages_per_s,
            max_burst_messages=max(max_messages_per_s, 2 * max_turns),
        )
        self._lanes: Lanes[ResponseT] = Lanes(max_turns=max_turns, memory=self._memory)
        self._cache: ConnectionCache[ResponseT] = ConnectionCache(self._memory)
        self._turns: dict[str, Turn[ResponseT]] = {}
        self._ended_ids = RecentIds(max_ids=MAX_ENDED_IDS)
        self._num_turns = 0
        self._commands: list[ResponseCommand[ResponseT] | Close] = []
        self._outbox: deque[Event] = deque()
        self._is_draining = False
        self._is_expired = False
        self._is_closed = False
        for lane, wish in resumes:
            try:
                self._begin(wish, lane)
            except RequestRefused as refused:
                self._outbox.append(error_event(refused.info, lane))

    # What comes in from the client.

    def receive_text(self, frame: str, *, now: float) -> None:
        """Take one text frame; nothing is heard any more once a `Close` has been given out."""
        if self.admit(frame, now=now):
            self.receive_parsed(self.parse(frame), now=now)

    def receive_bytes(self, frame: bytes, *, now: float) -> None:
        """Take one binary frame, which is as good as a text frame if it holds UTF-8."""
        if self.admit(frame, now=now):
            self.receive_parsed(self.parse(frame), now=now)

    def admit(self, frame: str | bytes, *, now: float) -> bool:
        """Count one frame; return whether it is to be parsed and received."""
        self.handle_timeout(now=now)
        if self._is_closed:
            return False
        if retry_after_s := self._limiter.refused_for_s(now=now):
            self._refuse(_too_many_messages(retry_after_s), peek_fields(frame))
            return False
        return True

    def parse(self, frame: str | bytes) -> ParsedFrame:
        """Read an admitted frame; touches nothing of the conversation, so a thread may do it."""
        return parse_frame(frame, to_message)

    def receive_parsed(self, parsed: ParsedFrame, *, now: float) -> None:
        """Take an admitted frame that has been parsed."""
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

    # What comes in from whoever obeys the commands.

    def receive_created(self, turn_id: str, response: ResponseT) -> None:
        """Take the response that a turn follows from now on."""
        turn = self._turns[turn_id]
        turn.move_to(TurnState.CREATED)
        turn.response = response
        if turn.is_cancelled:
            self._commands.append(CancelResponse(turn_id))

    def receive_up_to_date(self, turn_id: str, response: ResponseT | None) -> None:
        """Take that a resume has nothing to give: the client has all events of the response.

        Args:
            response: it, where one can go on from it.
        """
        turn = self._turns[turn_id]
        assert isinstance(turn.wish, Resume)
        if response is not None:
            self._cache.keep(response, turn.lane)
        self.receive_refused(turn_id, _NOTHING_TO_RESUME)

    def receive_refused(self, turn_id: str, info: ErrorInfo) -> None:
        """Take the reason why a turn gets no response."""
        turn = self._turns[turn_id]
        assert turn.state is TurnState.SUBMITTED
        self._outbox.append(error_event(info, turn.lane))
        self._end(turn, is_failed=not _is_capacity(info))
        self._start_turns()

    def receive_events(self, turn_id: str, events: Sequence[Event], *, now: float) -> None:
        """Take what a turn's response has had to say since the last call."""
        turn = self._turns[turn_id]
        for event in events:
            assert turn.state is TurnState.CREATED
            number = event["sequence_number"]
            assert isinstance(number, int)
            turn.sequence_number = number
            self._outbox.append(on_lane(event, turn.lane))
            if event["type"] in TERMINAL_TYPES:
                assert turn.response is not None
                is_failed = event["type"] == "response.failed"
                if not is_failed:
                    # Before the client can hear of the end: it may go on from here at once.
                    self._cache.keep(turn.response, turn.lane)
                self._end(turn, is_failed=is_failed)
        self._start_turns()

    def release(self) -> None:
        """Give back the memory that is shared with other sockets; nothing is called after this."""
        self._cache.clear()
        self._lanes.release()

    def receive_drain(self) -> None:
        """Take that the server goes away: the socket is closed once no turn is open."""
        self._is_draining = True
        self._close_if_done()

    # What goes out.

    @property
    def num_unsent(self) -> int:
        """Frames that wait to be sent."""
        return len(self._outbox)

    @property
    def next_timeout_at(self) -> float | None:
        """When `handle_timeout` has something to do, if nothing comes in before."""
        return self._age.next_timeout_at

    def handle_timeout(self, *, now: float) -> None:
        """Take the time, which makes the connection too old one day."""
        for stage in self._age.reached(now=now):
            match stage:
                case Stage.WARNED:
                    if self._tells_expiry:
                        self._outbox.append(expiring_event(self._age.expires_at - now))
                case Stage.EXPIRED:
                    self._is_expired = True
                    self._lanes.refuse_waiting(_LIMIT_REACHED)
                    self._start_turns()
                case Stage.OVER:
                    self._close_too_old()
                case _:
                    assert_never(stage)

    def commands(self) -> list[ResponseCommand[ResponseT] | Close]:
        """Return what is to be done, each once, in order."""
        commands, self._commands = self._commands, []
        return commands

    def frames_to_send(self) -> Iterator[Event]:
        """Yield the frames to be sent, each once, in order."""
        while self._outbox:
            yield self._outbox.popleft()

    # Inside.

    def _receive_message(
        self, message: Create | ControlMessage, fields: dict[str, Any], num_chars: int
    ) -> None:
        match message:
            case Create():
                self._begin(message, attempted_lane(fields), num_chars=num_chars)
            case ResumeResponseMessage():
                wish = Resume(message.response_id, message.starting_after)
                self._begin(wish, message.stream_id, num_chars=num_chars)
            case CancelResponseMessage():
                self._cancel(message)
            case SteerMessage():
                self._refuse_steer(message)
            case _:
                assert_never(message)

    def _begin(
        self, wish: Create | Resume | Refusal, lane: str | None, *, num_chars: int = 0
    ) -> None:
        """Queue a turn, and start what can be started.

        Raises:
            RequestRefused: there are too many turns or lanes, or the connection is too old.
        """
        self._lanes.check_room(num_chars)
        if not isinstance(wish, Refusal):
            if self._is_expired:
                raise RequestRefused(_LIMIT_REACHED)
            self._lanes.open(lane)
        self._num_turns += 1
        turn: Turn[ResponseT] = Turn(
            f"turn_{self._num_turns}", lane=lane, wish=wish, num_chars=num_chars
        )
        if turn.parent_id is not None and not self._cache.is_latest(turn.parent_id, lane):
            turn.parent = self._cache.find(turn.parent_id)
        self._lanes.add(turn)
        self._start_turns()

    def _start_turns(self) -> None:
        while (turn := self._lanes.take_next()) is not None:
            match turn.wish:
                case Refusal(info):
                    self._outbox.append(error_event(info, turn.lane))
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
                    assert_never(turn.wish)
        self._close_if_done()

    def _submit(self, turn: Turn[ResponseT]) -> None:
        turn.move_to(TurnState.SUBMITTED)
        self._turns[turn.turn_id] = turn

    def _end(self, turn: Turn[ResponseT], *, is_failed: bool) -> None:
        turn.move_to(TurnState.ENDED)
        self._lanes.end(turn)
        self._turns.pop(turn.turn_id, None)  # a refusal has never been submitted
        if turn.response is not None:
            self._ended_ids.remember(turn.response.response_id)
        parent_id = turn.parent_id
        # A fork that fails says nothing about the lane that it was to leave.
        if is_failed and parent_id is not None and self._cache.is_latest(parent_id, turn.lane):
            self._cache.evict(parent_id)

    def _refuse(self, info: ErrorInfo, fields: dict[str, Any]) -> None:
        lane = attempted_lane(fields)
        if not is_turn(fields):
            # With the name of a lane it would end what runs there.
            self._outbox.append(error_event(info, None))
        elif info.code in _AT_ONCE:
            self._outbox.append(error_event(info, lane))
        else:
            try:
                self._begin(Refusal(info, attempted_parent(fields)), lane)
            except RequestRefused as no_room:
                self._outbox.append(error_event(no_room.info, lane))

    def _cancel(self, message: CancelResponseMessage) -> None:
        turn = self._lanes.first(message.stream_id)
        if message.response_id is not None:
            turn = self._find_turn(message.response_id)
            if turn is None and message.response_id not in self._ended_ids:
                text = f"response_id: no response {message.response_id!r} runs on this connection"
                raise RequestRefused(
                    ErrorInfo(code="response_not_found", message=text, param="response_id")
                )
        if turn is None:
            return  # it may have ended while the cancel was on its way
        if turn.state is TurnState.CREATED:
            self._commands.append(CancelResponse(turn.turn_id))
        else:
            # Once created it is cancelled before its first step, so that it ends like every other.
            turn.is_cancelled = True

    def _refuse_steer(self, message: SteerMessage) -> None:
        turn = self._find_turn(message.previous_response_id)
        self._outbox.append(
            steer_failed_event(
                message.previous_response_id,
                message.input,
                sequence_number=0 if turn is None else max(0, turn.sequence_number),
                lane=None if turn is None else turn.lane,
            )
        )

    def _find_turn(self, response_id: str) -> Turn[ResponseT] | None:
        for turn in self._turns.values():
            if turn.response_id == response_id:
                return turn
        return None

    def _close_if_done(self) -> None:
        if self._is_closed or len(self._lanes):
            return
        if self._is_expired:
            self._close_too_old()
        elif self._is_draining:
            self._close("the server is going away")

    def _close_too_old(self) -> None:
        if not self._is_closed:
            self._outbox.append(error_event(_LIMIT_REACHED, None))
            self._close("the connection is too old")

    def _close(self, reason: str) -> None:
        self._is_closed = True
        # 1001: a client that reconnects by itself does so after this one.
        self._commands.append(Close(1001, reason))


def _too_many_messages(retry_after_s: float) -> ErrorInfo:
    message = f"Too many messages; try again in {retry_after_s:.2f} s."
    return ErrorInfo(code="rate_limit_exceeded", message=message, retry_after_s=retry_after_s)


def _is_capacity(info: ErrorInfo) -> bool:
    """Return whether the same request may succeed later: the turn has not been looked at."""
    return info.row.http_status in (429, 503)
