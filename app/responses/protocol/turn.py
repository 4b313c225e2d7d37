"""One turn of a Responses socket: a `response.create` or a resume, from its frame to its ending."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, assert_never

from app.errors import ErrorInfo
from app.responses.protocol.commands import ResponseT
from app.responses.schemas.request import ResponseRequest
from app.websocket.protocol.open_stream import InvalidTransition


class TurnState(StrEnum):
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
    """A checked `response.create`."""

    body: ResponseRequest


@dataclass(frozen=True, slots=True)
class Resume:
    """A checked wish to follow a response again."""

    response_id: str
    starting_after: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A wish that cannot be granted, which is said when the turns before it have ended."""

    info: ErrorInfo
    parent_id: str | None = None


class Turn(Generic[ResponseT]):
    """What the server knows of a turn.

    Args:
        turn_id: unique on the socket, and never told.
        lane: the client's `stream_id`; None is the default lane.
        wish: what the turn is to do.
        num_chars: size of its frame.
    """

    def __init__(
        self,
        turn_id: str,
        *,
        lane: str | None,
        wish: Create | Resume | Refusal,
        num_chars: int = 0,
    ) -> None:
        self.turn_id = turn_id
        self.lane = lane
        self.wish = wish
        self.num_chars = num_chars
        self.state = TurnState.WAITING
        self.parent: ResponseT | None = None
        """Held from when a fork is asked for, since its lane may move on before the fork starts."""
        self.response: ResponseT | None = None
        self.sequence_number = -1
        """Of the newest event; a resumed turn has that of its cursor first."""
        self.is_cancelled = False

    @property
    def parent_id(self) -> str | None:
        """The response that the turn was to go on from."""
        match self.wish:
            case Create(body):
                return body.previous_response_id
            case Refusal(_, parent_id):
                return parent_id
            case Resume():
                return None
            case _:
                assert_never(self.wish)

    @property
    def response_id(self) -> str | None:
        """Of the response that the turn follows, or is about to."""
        if self.response is not None:
            return self.response.response_id
        return self.wish.response_id if isinstance(self.wish, Resume) else None

    @property
    def needs_engine(self) -> bool:
        return not isinstance(self.wish, Refusal)

    def move_to(self, state: TurnState) -> None:
        if state not in _NEXT_STATES[self.state]:
            raise InvalidTransition(f"{self.state} -> {state}")
        self.state = state
