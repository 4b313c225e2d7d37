from __future__ import annotations

from typing import Any

import pytest

from app.responses.snapshot import ResponseSnapshot, to_usage
from streaming import Failed, Finished, FinishReason, Generation
from streaming.errors import EngineFailure, NoTokenAllowed, Overloaded
from tests.app.responses.logs import make_head, make_log

STOP = Finished(FinishReason.STOP, at=60.0)
LENGTH = Finished(FinishReason.LENGTH, at=60.0)
CANCELLED = Finished(FinishReason.CANCELLED, at=60.0)
FAILED = Failed(EngineFailure(), at=60.0)


def finish(record: Finished | Failed, *, is_lost: bool = False, **head: Any) -> dict[str, Any]:
    log: Generation = make_log("a", end=None)
    log.end(record)
    snapshot = ResponseSnapshot(make_head(**head), log)
    name = snapshot.finish(record, num_reasoning_tokens=1, is_lost=is_lost)
    return {"event": name, **snapshot.to_object([])}


@pytest.mark.parametrize(("is_background", "status"), [(False, "in_progress"), (True, "queued")])
def test_an_open_response_has_no_usage_and_no_end(is_background: bool, status: str):
    snapshot = ResponseSnapshot(make_head(is_background=is_background), make_log(end=None))
    response = snapshot.to_object([])
    assert response["status"] == status
    assert response["usage"] is response["completed_at"] is response["error"] is None


@pytest.mark.parametrize(
    ("record", "is_warm_up", "event", "status"),
    [
        (STOP, False, "completed", "completed"),
        (LENGTH, False, "incomplete", "incomplete"),
        (LENGTH, True, "completed", "completed"),
        (CANCELLED, False, "incomplete", "cancelled"),
        (CANCELLED, True, "incomplete", "cancelled"),
        (FAILED, False, "failed", "failed"),
    ],
)
def test_the_last_record_decides_event_and_status(
    record: Finished | Failed, is_warm_up: bool, event: str, status: str
):
    response = finish(record, is_warm_up=is_warm_up)
    assert (response["event"], response["status"]) == (event, status)
    is_incomplete = status == "incomplete"
    assert response["incomplete_details"] == (
        {"reason": "max_output_tokens"} if is_incomplete else None
    )
    completed_at = 1_700_000_060 if status == "completed" else None  # created_at + 60 s
    assert response["completed_at"] == completed_at


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailure(), "server_error"),
        (Overloaded(num_waiting=1, max_waiting=1, retry_after_s=1), "rate_limit_exceeded"),
        (NoTokenAllowed(param="logit_bias", reason="none"), "invalid_prompt"),
    ],
)
def test_a_failure_has_a_code_of_the_dialect(error: Any, code: str):
    assert finish(Failed(error, at=1.0))["error"] == {"code": code, "message": str(error)}


@pytest.mark.parametrize(("is_lost", "store"), [(False, True), (True, False)])
def test_a_response_that_could_not_be_stored_says_so(is_lost: bool, store: bool):
    assert finish(STOP, is_lost=is_lost)["store"] is store


def test_usage_does_not_count_the_output_of_a_warm_up():
    assert finish(STOP)["usage"] == to_usage(
        input_tokens=3, cached_tokens=2, output_tokens=1, reasoning_tokens=1
    )
    assert finish(STOP, is_warm_up=True)["usage"]["output_tokens"] == 0


def test_the_estimate_of_a_head_grows_with_its_request():
    small, large = make_head(), make_head(echo={"instructions": "x" * 10_000})
    assert large.num_bytes - small.num_bytes > 10_000
    assert small.response_id == f"resp_{small.key}"
