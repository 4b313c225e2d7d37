from __future__ import annotations

import pytest

from app.transport.token_bucket import TokenBucket


def test_a_burst_costs_no_wait_and_one_more_does():
    bucket = TokenBucket(per_s=10, max_burst=100)
    assert bucket.take(100, now=5.0) == 0
    assert bucket.take(1, now=5.0) == pytest.approx(0.1)


def test_a_debt_is_paid_by_waiting():
    bucket = TokenBucket(per_s=10, max_burst=100)
    assert bucket.take(150, now=0.0) == pytest.approx(5.0)
    assert bucket.take(0, now=4.0) == pytest.approx(1.0)
    assert bucket.take(0, now=5.0) == 0
    assert bucket.take(10, now=6.0) == 0


def test_the_balance_never_exceeds_a_burst():
    bucket = TokenBucket(per_s=10, max_burst=100)
    bucket.take(0, now=0.0)
    assert bucket.take(101, now=1e6) == pytest.approx(0.1)


def test_a_clock_that_goes_back_refills_nothing():
    bucket = TokenBucket(per_s=10, max_burst=100)
    bucket.take(100, now=10.0)
    assert bucket.take(1, now=0.0) == pytest.approx(0.1)
