"""Frames from the server on `WS /v1/stream`: one JSON object a frame, tagged by `type`.

These types are plain dictionaries at run time: a frame is built for every token, so it must be
cheap. Later versions may add fields; clients ignore unknown ones.
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
    Field(description="The cursor: all text up to here was sent. Pass it to `resume` as `after`."),
]


class AcceptedFrame(TypedDict):
    """The generation exists. From now on it survives a dropped connection."""

    type: Literal["accepted"]
    id: Annotated[str, Field(description="The stream's id: yours, or a generated one.")]
    generation_id: Annotated[str, Field(description="Pass it to `resume`.")]
    model: str
    created_at: Annotated[int, Field(description="Unix seconds.")]
    metadata: NotRequired[
        Annotated[dict[str, str], Field(description="As given in `generate`; absent if none.")]
    ]


class QueuedFrame(TypedDict):
    """The position in the queue; sent again when it changes, at most once a second."""

    type: Literal["queued"]
    id: _StreamId
    position: Annotated[int, Field(description="0 is next.")]
    estimated_wait_s: Annotated[
        float | None, Field(description="null until there is data for an estimate.")
    ]


class StartedFrame(TypedDict):
    """The model starts to process the prompt (prefill)."""

    type: Literal["started"]
    id: _StreamId
    prompt_tokens: int
    cached_tokens: Annotated[
        int, Field(description="Prompt tokens that were found in the prefix cache.")
    ]


class LogprobEntry(TypedDict):
    """One token and its natural-log probability."""

    token_id: int
    token: Annotated[str, Field(description="The text of the token alone.")]
    logprob: Annotated[float, Field(description="-9999 means minus infinity.")]


class TokenLogprobsEntry(LogprobEntry):
    """The chosen token, and the most likely alternatives, best first."""

    top: list[LogprobEntry]


class DeltaFrame(TypedDict):
    """New text: usually of one token, of more if the client reads slowly."""

    type: Literal["delta"]
    id: _StreamId
    seq: _Seq
    text: str
    token_ids: NotRequired[Annotated[list[int], Field(description="Only with `return_token_ids`.")]]
    logprobs: NotRequired[
        Annotated[list[TokenLogprobsEntry], Field(description="Only with `logprobs`.")]
    ]


class UsageFields(TypedDict):
    """Token counts of the whole generation, also if this socket received only a part of it."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int


class TimingFields(TypedDict):
    """Durations in seconds. null for a phase that was not reached."""

    queue_s: Annotated[float | None, Field(description="From the request to `started`.")]
    prefill_s: Annotated[float | None, Field(description="From `started` to the first token.")]
    ttft_s: Annotated[float | None, Field(description="From the request to the first token.")]
    total_s: Annotated[float | None, Field(description="From the request to the end.")]
    tokens_per_s: Annotated[float | None, Field(description="Rate after the first token.")]


class DoneFrame(TypedDict):
    """The end of a stream that finished or was cancelled. Its id is free again."""

    type: Literal["done"]
    id: _StreamId
    seq: _Seq
    finish_reason: FinishReason
    usage: UsageFields
    timings: TimingFields


class ErrorFrame(TypedDict):
    """An error. With an `id` it ends that stream; without one it concerns the connection."""

    type: Literal["error"]
    id: NotRequired[_StreamId]
    error: ErrorEvent
    seq: NotRequired[_Seq]


ServerFrame = AcceptedFrame | QueuedFrame | StartedFrame | DeltaFrame | DoneFrame | ErrorFrame
SERVER_FRAME: TypeAdapter[ServerFrame] = TypeAdapter(
    Annotated[ServerFrame, Field(discriminator="type")]
)
