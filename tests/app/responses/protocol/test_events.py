from __future__ import annotations

from typing import Any

import pytest

from app.errors import ERRORS, ErrorInfo
from app.responses.protocol.events import (
    CONNECTION_EXPIRED,
    IMMEDIATE_CODES,
    NOTHING_TO_RESUME,
    error_event,
    expiring_event,
    is_capacity_error,
    on_stream,
    steer_failed_event,
    too_many_messages,
)
from app.responses.schemas.objects import EventObject


def test_an_event_of_a_named_stream_has_its_id():
    event: EventObject = {"type": "response.output_text.delta", "sequence_number": 3, "delta": "x"}
    assert on_stream(event, None) is event
    assert on_stream(event, "a") == {**event, "stream_id": "a"}
    assert "stream_id" not in event, "another reader may get the same event"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid_request", 400),  # 422 over HTTP
        ("prompt_too_long", 413),
        ("response_not_found", 404),
        ("rate_limit_exceeded", 429),
    ],
)
def test_an_error_has_the_status_of_the_dialect(code: str, status: int):
    event = error_event(ErrorInfo(code=code, message="m", param="input"), None)
    assert (event["status"], event["error"]["code"], event["error"]["param"]) == (
        status,
        code,
        "input",
    )
    assert "stream_id" not in event
    assert "headers" not in event["error"]


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.01, "1"), (1.0, "1"), (1.5, "2")])
def test_retry_after_is_rounded_up_to_whole_seconds(retry_after_s: float, header: str):
    info = ErrorInfo(code="overloaded", message="m", retry_after_s=retry_after_s)
    event = error_event(info, "a")
    assert event["error"]["headers"] == {"retry-after": header}
    assert event["stream_id"] == "a"


@pytest.mark.parametrize("steer_input", ["more", [{"role": "user", "content": "more"}]])
def test_a_refused_steer_returns_its_input(steer_input: Any):
    event = steer_failed_event("resp_1", steer_input, sequence_number=7, stream_id="a")
    assert event["steer"] == {"previous_response_id": "resp_1", "input": steer_input}
    assert (event["sequence_number"], event["stream_id"]) == (7, "a")
    assert "stream_id" not in steer_failed_event("r", "", sequence_number=0, stream_id=None)


def test_the_expiry_is_given_in_milliseconds_at_most():
    assert expiring_event(59.99951)["expires_in_s"] == 60.0
    assert expiring_event(1.23456)["expires_in_s"] == 1.235


@pytest.mark.parametrize(
    ("code", "is_capacity"),
    [
        ("overloaded", True),
        ("rate_limited", True),
        ("store_unavailable", True),
        ("invalid_request", False),
        ("previous_response_not_found", False),
        ("engine_error", False),
    ],
)
def test_a_request_may_succeed_later_if_it_was_not_processed(code: str, is_capacity: bool):
    assert is_capacity_error(ErrorInfo(code=code, message="")) is is_capacity


def test_errors_about_limits_are_immediate():
    assert set(ERRORS) >= IMMEDIATE_CODES
    assert too_many_messages(0.256).code in IMMEDIATE_CODES
    assert CONNECTION_EXPIRED.code not in IMMEDIATE_CODES
    assert NOTHING_TO_RESUME.code not in IMMEDIATE_CODES


def test_the_message_rate_says_when_to_try_again():
    error = too_many_messages(0.256)
    assert error.retry_after_s == 0.256
    assert "0.26 s" in error.message
