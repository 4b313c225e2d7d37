"""Commands of a `ResponsesProtocol` to its socket; `Close` is shared by all dialects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from app.responses.schemas.request import ResponseRequest


class KnownResponse(Protocol):
    """What the protocol reads of a response."""

    @property
    def response_id(self) -> str:
        """Its id."""

    @property
    def num_bytes(self) -> int:
        """Estimated memory in bytes, including its context."""


ResponseT = TypeVar("ResponseT", bound=KnownResponse)


@dataclass(frozen=True, slots=True)
class CreateResponse(Generic[ResponseT]):
    """Create a response, then call `receive_created` or `receive_refused`.

    Attributes:
        turn_id: the turn of the response.
        body: the request.
        parent: the response that `previous_response_id` names on this socket; if None, it can only
            name a stored response.
    """

    turn_id: str
    body: ResponseRequest
    parent: ResponseT | None


@dataclass(frozen=True, slots=True)
class ResumeResponse:
    """Stream a response of the same caller again, after an event's number.

    Then call `receive_created`, `receive_up_to_date` or `receive_refused`.
    """

    turn_id: str
    response_id: str
    starting_after: int


@dataclass(frozen=True, slots=True)
class CancelResponse:
    """Cancel the response of a turn."""

    turn_id: str


ResponseCommand = CreateResponse[ResponseT] | ResumeResponse | CancelResponse
