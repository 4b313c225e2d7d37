"""What the server may say on `WS /v1/stream`: one JSON object a frame, told apart by `type`.

These types are dictionaries at run time, so that a frame costs no more than its own values: one is
made for every token. A frame may get more fields in a later version; a client skips those it does
not know.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from app.errors import ErrorEvent
from streaming import FinishReason

_StreamId = Annotated[str, Field(description="The stream that the frame belongs to.")]
_Seq = Annotated[
    int,
    Field(description="The cursor: all up to here has been told. `resume` takes it as `after`."),
]


class AcceptedFrame(TypedDict):
    """The generation exists. From here on it survives a dropped connection."""

    type: Literal["accepted"]
    id: Annotated[str, Field(description="The stream's name: yours, or one that the server made.")]
    generation_id: Annotated[str, Field(description="The handle to `resume` with. Keep it.")]
    model: str
    created_at: Annotated[int, Field(description="Unix seconds.")]
    metadata: NotRequired[
        Annotated[dict[str, str], Field(description="As given; left out where nothing was.")]
    ]


class QueuedFrame(TypedDict):
    """A place in the queue, told again when it changes, at most once a second."""

    type: Literal["queued"]
    id: _StreamId
    position: Annotated[int, Field(description="0 is next.")]
    estimated_wait_s: Annotated[
        float | None, Field(description="null while nothing is known to estimate it from.")
    ]


class StartedFrame(TypedDict):
    """The model begins to read the prompt."""

    type: Literal["started"]
    id: _StreamId
    prompt_tokens: int
    cached_tokens: Annotated[
        int, Field(description="Tokens of the prompt that an earlier request has paid for.")
    ]


class LogprobEntry(TypedDict):
    """One token and its natural-log probability."""

    token_id: int
    token: Annotated[str, Field(description="The token written by itself.")]
    logprob: Annotated[float, Field(description="-9999 stands for minus infinity.")]


class TokenLogprobsEntry(LogprobEntry):
    """The chosen token, and the likeliest alternatives, best first."""

    top: list[LogprobEntry]


class DeltaFrame(TypedDict):
    """New text; one token as a rule, more where the client reads slowly."""

    type: Literal["delta"]
    id: _StreamId
    seq: _Seq
    text: str
    token_ids: NotRequired[Annotated[list[int], Field(description="Only with `return_token_ids`.")]]
    logprobs: NotRequired[
        Annotated[list[TokenLogprobsEntry], Field(description="Only with `logprobs`.")]
    ]


class UsageFields(TypedDict):
    """Tokens of the whole generation, whichever part of it this socket has seen."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int


class TimingFields(TypedDict):
    """Durations in seconds, from the moment of the request; null where it did not get so far."""

    queue_s: float | None
    prefill_s: float | None
    ttft_s: Annotated[float | None, Field(description="Time to the first token.")]
    total_s: float | None
    tokens_per_s: float | None


class DoneFrame(TypedDict):
    """The end of a stream that went well, or was cancelled. Its id is free again."""

    type: Literal["done"]
    id: _StreamId
    seq: _Seq
    finish_reason: FinishReason
    usage: UsageFields
    timings: TimingFields


class ErrorFrame(TypedDict):
    """What went wrong. With an `id` it ends that stream; without one it is about the connection."""

    type: Literal["error"]
    id: NotRequired[_StreamId]
    error: ErrorEvent
    seq: NotRequired[_Seq]


ServerFrame = AcceptedFrame | QueuedFrame | StartedFrame | DeltaFrame | DoneFrame | ErrorFrame
SERVER_FRAME: TypeAdapter[ServerFrame] = TypeAdapter(
    Annotated[ServerFrame, Field(discriminator="type")]
)
