from __future__ import annotations

import json
import math
from itertools import cycle, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ErrorInfo
from app.stream.frames import (
    MAX_DELTA_TOKENS,
    accepted_frame,
    delta_frames,
    ended_frame,
    error_frame,
    queued_frame,
    started_frame,
)
from streaming import (
    Delta,
    Ended,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Logprob,
    Queued,
    Started,
    Token,
    TokenLogprobs,
    Tokens,
)
from streaming.errors import Overloaded
from streaming.log.generation import Tail
from streaming.log.reader import Reader
from tests.app.conversation import Frame
from tests.support import make_generation, property_test


def token_text(token_id: int) -> str:
    return f"<{token_id}>"


def to_frames(delta: Delta, *, token_ids: bool = False, logprobs: bool = False) -> list[Frame]:
    return [
        {**frame}
        for frame in delta_frames(
            "a",
            delta,
            return_token_ids=token_ids,
            return_logprobs=logprobs,
            token_text=token_text,
        )
    ]


def read_all(generation: Generation, *, include_empty_deltas: bool = True) -> Delta:
    [delta] = Reader(generation, include_empty_deltas=include_empty_deltas).read()
    assert isinstance(delta, Delta)
    return delta


def test_accepted() -> None:
    generation = make_generation("gen_x")
    expected = {
        "type": "accepted",
        "id": "a",
        "generation_id": "gen_x",
        "model": "scripted",
        "created_at": 1_700_000_000,
    }
    assert accepted_frame("a", generation) == expected
    generation.metadata = {"page": "7"}
    assert accepted_frame("a", generation) == {**expected, "metadata": {"page": "7"}}


def test_queued_and_started() -> None:
    assert queued_frame("a", Queued(2, 1.23456789)) == {
        "type": "queued",
        "id": "a",
        "position": 2,
        "estimated_wait_s": 1.234568,
    }
    assert queued_frame("a", Queued(0, None))["estimated_wait_s"] is None
    assert started_frame("a", Started(5, 3, at=0.0)) == {
        "type": "started",
        "id": "a",
        "prompt_tokens": 5,
        "cached_tokens": 3,
    }


def test_a_delta_carries_tokens_only_on_request() -> None:
    logprobs = TokenLogprobs(Logprob(7, -0.5), (Logprob(7, -0.5), Logprob(8, -1.0000001)))
    delta = Delta(4, "hi", Tokens.of([Token(7, "hi", 0.0, logprobs), Token(9, "", 0.0)]))
    plain = {"type": "delta", "id": "a", "seq": 4, "text": "hi"}
    assert to_frames(delta) == [plain]
    assert to_frames(delta, token_ids=True) == [{**plain, "token_ids": [7, 9]}]
    seven = {"token_id": 7, "token": "<7>", "logprob": -0.5}
    eight = {"token_id": 8, "token": "<8>", "logprob": -1.0}
    shown = [{**seven, "top": [seven, eight]}]
    assert to_frames(delta, logprobs=True) == [{**plain, "logprobs": shown}]


@pytest.mark.parametrize("impossible", [-math.inf, math.nan])
def test_the_logprob_of_an_impossible_token_is_valid_json(impossible: float) -> None:
    token = Token(1, "a", 0.0, TokenLogprobs(Logprob(1, impossible)))
    delta = Delta(0, "a", Tokens.of([token]))
    [frame] = to_frames(delta, logprobs=True)
    assert frame["logprobs"][0]["logprob"] == -9999.0


def test_a_delta_without_text_is_sent_only_with_its_tokens() -> None:
    delta = Delta(0, "", Tokens.of([Token(7, "", 0.0)]))
    assert to_frames(delta) == []
    assert [frame["token_ids"] for frame in to_frames(delta, token_ids=True)] == [[7]]


def test_a_long_delta_is_split() -> None:
    generation = make_generation()
    for token_id in range(2 * MAX_DELTA_TOKENS + 1):
        generation.append(Token(token_id, "x", 0.0))
    frames = to_frames(read_all(generation))
    sizes = [(frame["seq"], len(frame["text"])) for frame in frames]
    size = MAX_DELTA_TOKENS
    assert sizes == [(size - 1, size), (2 * size - 1, size), (2 * size, 1)]


@property_test
@given(
    pattern=st.lists(st.sampled_from(["", "a", "€€"]), min_size=1, max_size=7),
    num_tokens=st.integers(0, 3 * MAX_DELTA_TOKENS),
    tail=st.sampled_from([None, "tail"]),
    after=st.integers(-1, 5),
    include_empty_deltas=st.booleans(),
)
def test_splitting_keeps_text_and_cursors(
    pattern: list[str], num_tokens: int, tail: str | None, after: int, include_empty_deltas: bool
) -> None:
    generation = make_generation()
    for token_id, text in enumerate(islice(cycle(pattern), num_tokens)):
        generation.append(Token(token_id, text, 0.0))
    if tail is not None:
        generation.append(Tail(tail, 0.0))
    after = min(after, generation.last_seq)
    events = Reader(generation, after=after, include_empty_deltas=include_empty_deltas).read()
    frames = [
        frame
        for delta in events
        if isinstance(delta, Delta)
        for frame in to_frames(delta, token_ids=include_empty_deltas)
    ]
    read = after
    for frame in frames:
        records = generation.read_after(read)[: frame["seq"] - read]
        assert frame["text"] == "".join(getattr(record, "text", "") for record in records)
        if include_empty_deltas:
            ids = [record.token_id for record in records if isinstance(record, Token)]
            assert frame["token_ids"] == ids
            assert len(ids) <= MAX_DELTA_TOKENS
        read = frame["seq"]
    assert "".join(getattr(record, "text", "") for record in generation.read_after(read)) == ""


def test_done() -> None:
    generation = make_generation(prompt_tokens=3)
    generation.start(cached_tokens=1, at=0.5)
    generation.append(Token(1, "a", 1.0))
    generation.append(Token(2, "b", 1.25))
    record = Finished(FinishReason.STOP, 1.5)
    generation.end(record)
    assert ended_frame("a", Ended(2, record), generation) == {
        "type": "done",
        "id": "a",
        "seq": 2,
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 3,
            "cached_tokens": 1,
            "completion_tokens": 2,
            "total_tokens": 5,
        },
        "timings": {
            "queue_s": 0.5,
            "prefill_s": 0.5,
            "ttft_s": 1.0,
            "total_s": 1.5,
            "tokens_per_s": 4.0,
        },
    }


def test_done_before_the_start_has_only_a_total_time() -> None:
    generation = make_generation()
    record = Finished(FinishReason.CANCELLED, 1.5)
    generation.end(record)
    frame: Frame = {**ended_frame("a", Ended(0, record), generation)}
    assert frame["timings"] == {
        "queue_s": None,
        "prefill_s": None,
        "ttft_s": None,
        "total_s": 1.5,
        "tokens_per_s": None,
    }
    json.dumps(frame, allow_nan=False)


def test_a_failed_generation_ends_with_its_error() -> None:
    error = Overloaded(num_waiting=2, max_waiting=2, retry_after_s=1.5)
    frame = ended_frame("a", Ended(4, Failed(error, 1.0)), make_generation())
    assert frame == {
        "type": "error",
        "id": "a",
        "seq": 4,
        "error": {
            "code": "overloaded",
            "message": str(error),
            "retryable": True,
            "retry_after_s": 1.5,
        },
    }


def test_an_error_of_the_connection_has_no_id() -> None:
    info = ErrorInfo(code="unknown_id", message="no", param="id")
    body = {"code": "unknown_id", "message": "no", "retryable": False, "param": "id"}
    assert error_frame(info, None) == {"type": "error", "error": body}
    assert error_frame(info, "a") == {"type": "error", "id": "a", "error": body}
