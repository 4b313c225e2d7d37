"""Builds the server's frames on `WS /v1/stream` from a generation's events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import assert_never

from app.errors import ErrorInfo
from app.schemas.logprobs import clamp_logprob
from app.stream.schemas.frames import (
    AcceptedFrame,
    DeltaFrame,
    DoneFrame,
    ErrorFrame,
    LogprobEntry,
    QueuedFrame,
    StartedFrame,
    TokenLogprobsEntry,
)
from streaming import (
    Delta,
    Ended,
    Failed,
    Finished,
    Generation,
    Queued,
    Scores,
    Started,
)

TokenText = Callable[[int], str]

MAX_DELTA_TOKENS = 256
"""Longer deltas are split. With 20 logprobs a token takes about 1.2 kB, and clients commonly limit
frames to 1 MiB; such a client could not resume a whole log sent as one frame."""


def accepted_frame(stream_id: str, generation: Generation) -> AcceptedFrame:
    """Return `accepted`, the first frame of a stream."""
    frame: AcceptedFrame = {
        "type": "accepted",
        "id": stream_id,
        "generation_id": generation.generation_id,
        "model": generation.model,
        "created_at": int(generation.created_at),
    }
    if generation.metadata:
        frame["metadata"] = dict(generation.metadata)
    return frame


def queued_frame(stream_id: str, queued: Queued) -> QueuedFrame:
    """Return `queued`: position in the queue, and estimated wait in seconds."""
    return {
        "type": "queued",
        "id": stream_id,
        "position": queued.position,
        "estimated_wait_s": _rounded(queued.estimated_wait_s),
    }


def started_frame(stream_id: str, started: Started) -> StartedFrame:
    """Return `started`, sent when prefill begins."""
    return {
        "type": "started",
        "id": stream_id,
        "prompt_tokens": started.prompt_tokens,
        "cached_tokens": started.cached_tokens,
    }


def delta_frames(
    stream_id: str,
    delta: Delta,
    *,
    return_token_ids: bool,
    return_logprobs: bool,
    token_text: TokenText,
) -> Iterator[DeltaFrame]:
    """Yield the delta as one frame, or as several of at most `MAX_DELTA_TOKENS` tokens.

    Args:
        stream_id: the stream of the frames.
        delta: new text and tokens.
        return_token_ids: include `token_ids`.
        return_logprobs: include `logprobs`.
        token_text: returns the text of a single token id.
    """
    for part in delta.cut(max_tokens=MAX_DELTA_TOKENS):
        if not (part.text or return_token_ids or return_logprobs):
            continue  # the next delta moves the cursor past tokens without text
        frame: DeltaFrame = {"type": "delta", "id": stream_id, "seq": part.seq, "text": part.text}
        if return_token_ids:
            frame["token_ids"] = part.tokens.ids
        if return_logprobs:
            frame["logprobs"] = [
                _token_logprobs(scores, token_text) for scores in part.tokens.scores() if scores
            ]
        yield frame


def ended_frame(stream_id: str, ended: Ended, generation: Generation) -> DoneFrame | ErrorFrame:
    """Return the last frame of a stream: `done`, or the `error` that ended the generation."""
    match ended.record:
        case Finished(finish_reason=finish_reason):
            usage, timings = generation.usage, generation.timings
            return {
                "type": "done",
                "id": stream_id,
                "seq": ended.seq,
                "finish_reason": finish_reason,
                "usage": {
                    "prompt_tokens": usage.prompt_tokens,
                    "cached_tokens": usage.cached_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "total_tokens": usage.total_tokens,
                },
                "timings": {
                    "queue_s": _rounded(timings.queue_s),
                    "prefill_s": _rounded(timings.prefill_s),
                    "ttft_s": _rounded(timings.ttft_s),
                    "total_s": _rounded(timings.total_s),
                    "tokens_per_s": _rounded(timings.tokens_per_s),
                },
            }
        case Failed(error=error):
            frame = error_frame(ErrorInfo.of(error), stream_id)
            frame["seq"] = ended.seq
            return frame
        case _:
            assert_never(ended.record)


def error_frame(info: ErrorInfo, stream_id: str | None) -> ErrorFrame:
    """Return `error`: it ends the stream of the id, or concerns the connection if that is None."""
    if stream_id is None:
        return {"type": "error", "error": info.to_event()}
    return {"type": "error", "id": stream_id, "error": info.to_event()}


def _token_logprobs(scores: Scores, token_text: TokenText) -> TokenLogprobsEntry:
    chosen, *top = [_logprob(token_id, logprob, token_text) for token_id, logprob in scores]
    return {**chosen, "top": top}


def _logprob(token_id: int, logprob: float, token_text: TokenText) -> LogprobEntry:
    return {
        "token_id": token_id,
        "token": token_text(token_id),
        "logprob": round(clamp_logprob(logprob), 6),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
