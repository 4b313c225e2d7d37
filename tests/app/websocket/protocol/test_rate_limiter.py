from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.websocket.protocol.rate_limiter import MessageRateLimiter
from tests.support import property_test


def test_a_burst_is_allowed_and_the_next_message_has_to_wait() -> None:
    limiter = MessageRateLimiter(max_messages_per_s=2, max_burst_messages=3)
    waits = [limiter.refused_for_s(now=10.0) for _ in range(5)]
    assert waits == [0.0, 0.0, 0.0, 0.5, 0.5]


def test_a_retry_after_the_given_time_is_allowed() -> None:
    limiter = MessageRateLimiter(max_messages_per_s=2, max_burst_messages=1)
    limiter.refused_for_s(now=0.0)
    wait_s = limiter.refused_for_s(now=0.25)
    assert wait_s == 0.25
    assert limiter.refused_for_s(now=0.25 + wait_s) == 0.0


def test_the_bucket_holds_no_more_than_a_burst() -> None:
    limiter = MessageRateLimiter(max_messages_per_s=100, max_burst_messages=2)
    limiter.refused_for_s(now=0.0)
    waits = [limiter.refused_for_s(now=1e6) for _ in range(3)]
    assert [wait > 0 for wait in waits] == [False, False, True]


@pytest.mark.parametrize("limits", [(0, 1), (1, 0)])
def test_limits_that_allow_no_message_are_an_assertion_error(limits: tuple[float, float]) -> None:
    with pytest.raises(AssertionError):
        MessageRateLimiter(max_messages_per_s=limits[0], max_burst_messages=limits[1])


@property_test
@given(gaps=st.lists(st.floats(0, 1), max_size=200))
def test_no_more_than_burst_and_rate_are_allowed(gaps: list[float]) -> None:
    limiter = MessageRateLimiter(max_messages_per_s=5, max_burst_messages=4)
    now, num_allowed = 0.0, 0
    for gap in gaps:
        now += gap
        num_allowed += limiter.refused_for_s(now=now) == 0.0
        assert num_allowed <= 4 + 5 * now + 1e-6
