"""Messages that a client may send on `WS /v1/responses`, besides `response.create`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.schemas.wire_model import WireModel

CREATE = "response.create"
RESUME = "tokenwire.response.resume"
STREAM_ID_PATTERN = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_MAX_ID_CHARS = 256

_ResponseId = Annotated[str, Field(min_length=1, max_length=_MAX_ID_CHARS)]
_StreamId = Annotated[
    str | None,
    Field(
        pattern=rf"^{STREAM_ID_PATTERN.pattern}$",
        description="The stream; null is the default stream.",
    ),
]


class CancelResponseMessage(WireModel):
    """Cancel a response at its next token: the one with this id, or the one on this stream."""

    type: Literal["response.cancel"]
    response_id: _ResponseId | None = None
    stream_id: _StreamId = None


class ResumeResponseMessage(WireModel):
    """Replay a response's events after the client's cursor, then stream the new ones."""

    type: Literal["tokenwire.response.resume"]
    response_id: _ResponseId
    starting_after: int = Field(
        -1, ge=-1, description="`sequence_number` of the last event that the client has."
    )
    stream_id: _StreamId = None


class SteerMessage(WireModel):
    """Add input to a running response; always refused, as no model here supports it."""

    type: Literal["response.steer"]
    previous_response_id: _ResponseId
    input: str | list[Any]


ControlMessage = CancelResponseMessage | ResumeResponseMessage | SteerMessage
CONTROL_MESSAGE: TypeAdapter[ControlMessage] = TypeAdapter(
    Annotated[ControlMessage, Field(discriminator="type")]
)
CONTROL_TYPES = ("response.cancel", RESUME, "response.steer")
