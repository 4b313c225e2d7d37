from __future__ import annotations

import pytest

from app.responses.protocol.connection_age import GRACE_S, ConnectionAge, Stage


def test_each_stage_is_reached_once_in_order():
    age = ConnectionAge(opened_at=100.0, max_s=3600.0)
    reached = []
    while (next_timeout_at := age.next_timeout_at) is not None:
        assert age.reached(now=next_timeout_at - 0.001) == []
        reached.append((next_timeout_at, age.reached(now=next_timeout_at)))
        assert age.reached(now=next_timeout_at) == []
    assert reached == [
        (3640.0, [Stage.WARNED]),
        (3700.0, [Stage.EXPIRED]),
        (3700.0 + GRACE_S, [Stage.OVER]),
    ]


def test_a_late_call_returns_every_stage():
    age = ConnectionAge(opened_at=0.0, max_s=3600.0)
    assert age.reached(now=1e9) == [Stage.WARNED, Stage.EXPIRED, Stage.OVER]


@pytest.mark.parametrize(("max_s", "warned_at"), [(3600.0, 3540.0), (100.0, 90.0)])
def test_a_short_maximum_age_has_a_short_warning(max_s: float, warned_at: float):
    assert ConnectionAge(opened_at=0.0, max_s=max_s).next_timeout_at == warned_at
