"""The frame types accept what `app.stream.frames` builds, and nothing incomplete."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.errors import ErrorInfo
from app.stream.frames import (
    accepted_frame,
    delta_frames,
    ended_frame,
    error_frame,
    queued_frame,
    started_frame,
)
from app.stream.schemas.frames import SERVER_FRAME, ServerFrame
from streaming import (
    Delta,
    Ended,
    Failed,
    Finished,
    FinishReason,
    Logprob,
    Queued,
    Started,
    Token,
    TokenLogprobs,
    Tokens,
)
from streaming.errors import EngineFailure
from tests.support import make_generation

LOGPROBS = TokenLogprobs(Logprob(7, -0.5), (Logprob(7, -0.5),))
DELTA = Delta(0, "hi", Tokens.of([Token(7, "hi", 0.0, LOGPROBS)]))


def frames() -> list[ServerFrame]:
    """Return a frame of each type; of a delta and an error the smallest and the largest."""
    generation = make_generation()
    generation.metadata = {"page": "7"}
    deltas = [
        frame
        for is_detailed in (False, True)
        for frame in delta_frames(
            "a",
            DELTA,
            return_token_ids=is_detailed,
            return_logprobs=is_detailed,
            token_text=str,
        )
    ]
    return [
        accepted_frame("a", generation),
        queued_frame("a", Queued(2, None)),
        started_frame("a", Started(5, 3, at=0.0)),
        *deltas,
        ended_frame("a", Ended(1, Finished(FinishReason.STOP, at=0.0)), generation),
        ended_frame("a", Ended(1, Failed(EngineFailure(), at=0.0)), generation),
        error_frame(ErrorInfo(code="invalid_json", message="no"), None),
    ]


FRAMES = [
    pytest.param(frame, id=f"{index}-{frame['type']}") for index, frame in enumerate(frames())
]


@pytest.mark.parametrize("frame", FRAMES)
def test_validation_keeps_every_field(frame: dict[str, Any]) -> None:
    # Validation drops unknown fields, so this fails if a type lacks a field that is sent.
    assert SERVER_FRAME.validate_python(frame) == frame


@pytest.mark.parametrize("frame", FRAMES)
def test_the_type_is_required_and_known(frame: dict[str, Any]) -> None:
    for wrong in ({**frame, "type": "unknown"}, {k: v for k, v in frame.items() if k != "type"}):
        with pytest.raises(ValidationError):
            SERVER_FRAME.validate_python(wrong)


def test_a_field_of_a_later_version_is_ignored() -> None:
    frame = {**queued_frame("a", Queued(2, 1.5)), "new": 1}
    assert SERVER_FRAME.validate_python(frame) == queued_frame("a", Queued(2, 1.5))


def test_a_done_needs_its_cursor() -> None:
    finished = Finished(FinishReason.STOP, at=0.0)
    done = {**ended_frame("a", Ended(1, finished), make_generation())}
    del done["seq"]
    with pytest.raises(ValidationError, match="seq"):
        SERVER_FRAME.validate_python(done)
