from __future__ import annotations

import pytest

from app.transport.allowance import Allowance


def test_a_burst_costs_no_wait_and_a_byte_more_does():
    allowance = Allowance(per_s=10, max_burst=100)
    assert allowance.take(100, now=5.0) == 0
    assert allowance.take(1, now=5.0) == pytest.approx(0.1)


def test_debt_is_paid_by_waiting():
    allowance = Allowance(per_s=10, max_burst=100)
    assert allowance.take(150, now=0.0) == pytest.approx(5.0)
    assert allowance.take(0, now=4.0) == pytest.approx(1.0)
    assert allowance.take(0, now=5.0) == 0
    assert allowance.take(10, now=6.0) == 0


def test_no_more_than_a_burst_is_saved_up():
    allowance = Allowance(per_s=10, max_burst=100)
    allowance.take(0, now=0.0)
    assert allowance.take(101, now=1e6) == pytest.approx(0.1)


def test_a_clock_that_goes_back_gives_nothing():
    allowance = Allowance(per_s=10, max_burst=100)
    allowance.take(100, now=10.0)
    assert allowance.take(1, now=0.0) == pytest.approx(0.1)
