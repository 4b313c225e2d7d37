"""Events that the server sends on `WS /v1/responses`, besides those of the responses themselves.

They are plain dictionaries at run time, like those of `WS /v1/stream`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic requires this one before Python 3.12

from app.errors import ERRORS

_StreamId = Annotated[str, Field(description="The stream; omitted on the default stream.")]


class ResponsesErrorDetail(TypedDict):
    """An error in OpenAI's form."""

    message: Annotated[str, Field(description="For people; safe to show.")]
    type: Annotated[str, Field(description="OpenAI's family of the error.")]
    param: Annotated[str | None, Field(description="The field at fault.")]
    code: Annotated[
        str,
        Field(
            description="For programs; never changes its meaning.",
            json_schema_extra={"enum": [*ERRORS]},
        ),
    ]
    headers: NotRequired[
        Annotated[
            dict[str, str],
            Field(description="The headers of an HTTP answer: `retry-after`, in seconds."),
        ]
    ]


class ResponsesErrorEvent(TypedDict):
    """An error: ends a turn that has no response, or concerns the connection."""

    type: Literal["error"]
    status: Annotated[int, Field(description="The status of an HTTP answer.")]
    error: ResponsesErrorDetail
    stream_id: NotRequired[_StreamId]


class SteerErrorDetail(TypedDict):
    """Why a steer was refused."""

    type: Literal["invalid_request_error"]
    code: Literal["steering_not_supported"]
    message: str


class RefusedSteer(TypedDict):
    """The refused input, so that the client can send it otherwise."""

    previous_response_id: str
    input: str | list[Any]


class SteerFailedEvent(TypedDict):
    """A steer was refused: no model here can take input while it generates."""

    type: Literal["response.steer.failed"]
    sequence_number: Annotated[int, Field(description="That of the response's newest event.")]
    error: SteerErrorDetail
    steer: RefusedSteer
    stream_id: NotRequired[_StreamId]


class ConnectionExpiringEvent(TypedDict):
    """The connection will soon reach its maximum age. Only with `tokenwire_events=true`."""

    type: Literal["tokenwire:connection.expiring"]
    sequence_number: Annotated[int, Field(description="Always 0: it belongs to no response.")]
    expires_in_s: float
