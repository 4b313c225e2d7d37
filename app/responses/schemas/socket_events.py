"""What the server says on `WS /v1/responses` beside the events of the responses themselves.

These types are dictionaries at run time, as those of `WS /v1/stream` are.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from app.errors import ERRORS

_Lane = Annotated[str, Field(description="The lane; left out on the lane without a name.")]


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
            Field(description="What an answer over HTTP would have: `retry-after`, in seconds."),
        ]
    ]


class ResponsesErrorEvent(TypedDict):
    """The ending of a turn that has no response; or it concerns the connection."""

    type: Literal["error"]
    status: Annotated[int, Field(description="The status of an answer over HTTP.")]
    error: ResponsesErrorDetail
    stream_id: NotRequired[_Lane]


class SteerErrorDetail(TypedDict):
    """Why a steer was refused."""

    type: Literal["invalid_request_error"]
    code: Literal["steering_not_supported"]
    message: str


class RefusedSteer(TypedDict):
    """What was refused, for the client to use elsewhere."""

    previous_response_id: str
    input: str | list[Any]


class SteerFailedEvent(TypedDict):
    """Input cannot be added to a running response here."""

    type: Literal["response.steer.failed"]
    sequence_number: Annotated[int, Field(description="That of the response's newest event.")]
    error: SteerErrorDetail
    steer: RefusedSteer
    stream_id: NotRequired[_Lane]


class ConnectionExpiringEvent(TypedDict):
    """The connection will soon be as old as it may be. Only with `tokenwire_events=true`."""

    type: Literal["tokenwire:connection.expiring"]
    sequence_number: Annotated[int, Field(description="Always 0: it is of no response.")]
    expires_in_s: float
