"""What the server says on `WS /v1/stream`: the log's events as JSON objects."""

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
"""A longer delta is cut. With 20 logprobs a token costs about 1.2 kB, and a client commonly takes
frames of up to 1 MiB; a whole log in one frame could never be resumed by such a client."""


def accepted_frame(stream_id: str, generation: Generation) -> AcceptedFrame:
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
    return {
        "type": "queued",
        "id": stream_id,
        "position": queued.position,
        "estimated_wait_s": _rounded(queued.estimated_wait_s),
    }


def started_frame(stream_id: str, started: Started) -> StartedFrame:
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
    """Yield the delta as one frame, or as several where it holds very many tokens."""
    for part in delta.cut(max_tokens=MAX_DELTA_TOKENS):
        if not (part.text or return_token_ids or return_logprobs):
            continue  # tokens that show no text move the cursor with the next delta
        frame: DeltaFrame = {"type": "delta", "id": stream_id, "seq": part.seq, "text": part.text}
        if return_token_ids:
            frame["token_ids"] = part.tokens.ids
        if return_logprobs:
            frame["logprobs"] = [
                _token_logprobs(scores, token_text) for scores in part.tokens.scores() if scores
            ]
        yield frame


def ended_frame(stream_id: str, ended: Ended, generation: Generation) -> DoneFrame | ErrorFrame:
    """Return `done`, or the `error` that ended the generation."""
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
    """Return an error: with an id it ends that stream, without one it concerns the connection."""
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
