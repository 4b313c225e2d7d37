"""A rate for each caller, and a bounded number of callers."""

from __future__ import annotations

from typing import Any

from app.http.request_limiter import RequestLimiter
from tests.support import ManualClock


def make_limiter(**limits: Any) -> RequestLimiter:
    defaults = {
        "max_open_requests": 2,
        "max_requests_per_s": 1.0,
        "max_burst_requests": 10,
        "clock": ManualClock(),
    }
    return RequestLimiter(**{**defaults, **limits})


def test_each_caller_has_a_number_of_open_requests():
    limiter = make_limiter(max_open_requests=2)
    with limiter.open("a"), limiter.open("a"):
        assert limiter.is_full_for("a")
        assert not limiter.is_full_for("b")
    assert not limiter.is_full_for("a")
    assert len(limiter) == 0, "a caller without open requests is forgotten"


def test_each_caller_has_its_own_rate_and_the_returned_wait_suffices():
    clock = ManualClock()
    limiter = make_limiter(max_requests_per_s=2, max_burst_requests=3, clock=clock)
    assert [limiter.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limiter.take("b") == 0.0
    clock.advance(0.5)
    assert [limiter.take("a") for _ in range(2)] == [0.0, 0.5]


def test_the_least_recently_used_caller_is_forgotten():
    limiter = make_limiter(max_requests_per_s=1, max_burst_requests=1, max_callers=2)
    assert [limiter.take(caller) for caller in "abab"] == [0.0, 0.0, 1.0, 1.0]
    assert limiter.take("c") == 0.0
    assert len(limiter) == 2
    assert [limiter.take(caller) for caller in "ba"] == [1.0, 0.0]
