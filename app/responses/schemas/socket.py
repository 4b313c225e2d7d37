"""What a client may say on `WS /v1/responses`, besides `response.create`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.schemas.wire_model import WireModel

CREATE = "response.create"
RESUME = "tokenwire.response.resume"
LANE_PATTERN = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_MAX_ID_CHARS = 256

_ResponseId = Annotated[str, Field(min_length=1, max_length=_MAX_ID_CHARS)]
_Lane = Annotated[
    str | None,
    Field(pattern=rf"^{LANE_PATTERN.pattern}$", description="The lane; null is the default one."),
]


class CancelResponseMessage(WireModel):
    """Stop a running response at the next token: by its id, or what runs on a lane."""

    type: Literal["response.cancel"]
    response_id: _ResponseId | None = None
    stream_id: _Lane = None


class ResumeResponseMessage(WireModel):
    """Replay a response's events after one that the client has, then follow it."""

    type: Literal["tokenwire.response.resume"]
    response_id: _ResponseId
    starting_after: int = Field(
        -1, ge=-1, description="`sequence_number` of the last event that the client has."
    )
    stream_id: _Lane = None


class SteerMessage(WireModel):
    """Add input to a running response; no model here can do it."""

    type: Literal["response.steer"]
    previous_response_id: _ResponseId
    input: str | list[Any]


ControlMessage = CancelResponseMessage | ResumeResponseMessage | SteerMessage
CONTROL_MESSAGE: TypeAdapter[ControlMessage] = TypeAdapter(
    Annotated[ControlMessage, Field(discriminator="type")]
)
CONTROL_TYPES = ("response.cancel", RESUME, "response.steer")
