"""What a `ResponsesProtocol` wants done; `Close` is the one of every socket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from app.responses.schemas.request import ResponseRequest


class KnownResponse(Protocol):
    """A response, as far as a conversation must know it to go on from it."""

    @property
    def response_id(self) -> str: ...

    @property
    def num_bytes(self) -> int:
        """About what it keeps in memory, with all that led to it."""


ResponseT = TypeVar("ResponseT", bound=KnownResponse)


@dataclass(frozen=True, slots=True)
class CreateResponse(Generic[ResponseT]):
    """Create a response, then call `receive_created` or `receive_refused`.

    Attributes:
        parent: what `previous_response_id` means on this socket; without it, only a stored
            response can be meant.
    """

    turn_id: str
    body: ResponseRequest
    parent: ResponseT | None


@dataclass(frozen=True, slots=True)
class ResumeResponse:
    """Follow a response of the same caller after an event's number.

    Then call `receive_created`, `receive_up_to_date` or `receive_refused`.
    """

    turn_id: str
    response_id: str
    starting_after: int


@dataclass(frozen=True, slots=True)
class CancelResponse:
    """Cancel the response that the turn follows."""

    turn_id: str


ResponseCommand = CreateResponse[ResponseT] | ResumeResponse | CancelResponse
