from __future__ import annotations

import pytest

from app.errors import ERRORS, ErrorInfo
from app.responses.protocol.errors import (
    CONNECTION_EXPIRED,
    IMMEDIATE_CODES,
    NOTHING_TO_RESUME,
    is_capacity_error,
    too_many_messages,
)


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
