"""One turn of a Responses socket: a `response.create` or a resume, from its frame to its ending."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeAlias, assert_never

from app.errors import ErrorInfo
from app.responses.protocol.commands import ResponseT
from app.responses.schemas.request import ResponseRequest
from app.websocket.protocol.open_stream import InvalidTransition


class TurnState(StrEnum):
    """The states of a turn; `CREATED` means that its response exists."""

    WAITING = "waiting"
    SUBMITTED = "submitted"
    CREATED = "created"
    ENDED = "ended"


_NEXT_STATES = {
    TurnState.WAITING: {TurnState.SUBMITTED, TurnState.ENDED},
    TurnState.SUBMITTED: {TurnState.CREATED, TurnState.ENDED},
    TurnState.CREATED: {TurnState.ENDED},
    TurnState.ENDED: set[TurnState](),
}


@dataclass(frozen=True, slots=True)
class Create:
    """A valid `response.create`."""

    body: ResponseRequest


@dataclass(frozen=True, slots=True)
class Resume:
    """A valid request to resume a response after an event's number."""

    response_id: str
    starting_after: int


@dataclass(frozen=True, slots=True)
class RejectedRequest:
    """An invalid request; its error is sent when the turns before it have ended."""

    info: ErrorInfo
    parent_id: str | None = None


TurnRequest: TypeAlias = Create | Resume | RejectedRequest


class Turn(Generic[ResponseT]):
    """The state of one turn.

    Args:
        turn_id: unique on the socket; clients do not see it.
        stream_id: the client's name of the stream; None is the default stream.
        request: what the client asks for.
        num_chars: size of its frame.
    """

    def __init__(
        self,
        turn_id: str,
        *,
        stream_id: str | None,
        request: TurnRequest,
        num_chars: int = 0,
    ) -> None:
        self.turn_id = turn_id
        self.stream_id = stream_id
        self.request = request
        self.num_chars = num_chars
        self.state = TurnState.WAITING
        self.parent: ResponseT | None = None
        """Set when a fork is queued: the other stream may move on before the fork starts."""
        self.response: ResponseT | None = None
        self.sequence_number = -1
        """That of the newest event; a resumed turn starts with its cursor."""
        self.is_cancelled = False

    @property
    def parent_id(self) -> str | None:
        """The id of the response that the turn continues."""
        match self.request:
            case Create(body):
                return body.previous_response_id
            case RejectedRequest(_, parent_id):
                return parent_id
            case Resume():
                return None
            case _:
                assert_never(self.request)

    @property
    def response_id(self) -> str | None:
        """The id of the turn's response, or of the one that it will resume."""
        if self.response is not None:
            return self.response.response_id
        return self.request.response_id if isinstance(self.request, Resume) else None

    @property
    def needs_engine(self) -> bool:
        """Whether the turn counts as running; a rejected one only sends its error."""
        return not isinstance(self.request, RejectedRequest)

    def move_to(self, state: TurnState) -> None:
        """Enter a state.

        Raises:
            InvalidTransition: the state cannot follow the current one.
        """
        if state not in _NEXT_STATES[self.state]:
            raise InvalidTransition(f"{self.state} -> {state}")
        self.state = state
