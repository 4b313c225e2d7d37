from __future__ import annotations

import pytest

from app.responses.storage.retention_clock import MAX_GAP_S, ClockReading, RetentionClock
from tests.support import ManualClock

DAY_S = 24 * 3600.0


class Machine:
    """Processes on one machine that share the saved clock reading."""

    def __init__(self, *, wall_s: float = 1000.0) -> None:
        self.wall = ManualClock(wall_s)
        self.monotonic = ManualClock(5.0)
        self.kept = RetentionClock(wall=self.wall, monotonic=self.monotonic).begin(newest_s=None)

    def start(self) -> RetentionClock:
        clock = RetentionClock(wall=self.wall, monotonic=self.monotonic)
        self.sweep(clock)
        return clock

    def sweep(self, *clocks: RetentionClock) -> None:
        for clock in clocks:
            self.kept = clock.advance(self.kept)

    def pass_time(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.monotonic.advance(seconds)


def test_the_count_follows_the_clocks():
    machine = Machine()
    clock = machine.start()
    for _ in range(3):
        machine.pass_time(40)
        assert clock.now_s == machine.wall()
        machine.sweep(clock)
        assert clock.now_s == machine.wall()
    assert machine.kept == ClockReading(1120, 1120)


@pytest.mark.parametrize("jump_s", [MAX_GAP_S / 2, MAX_GAP_S, 31 * DAY_S, -31 * DAY_S])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_gap_counts_up_to_a_limit(jump_s: float, restarts: bool):
    machine = Machine()
    clock = machine.start()
    machine.wall.advance(jump_s)
    if restarts:
        clock = machine.start()
    else:
        machine.sweep(clock)
    assert clock.now_s == 1000 + min(max(0, jump_s), MAX_GAP_S)


def test_a_clock_that_jumps_back_and_forth_counts_once():
    machine = Machine()
    clock = machine.start()
    for _ in range(10):
        for jump_s in (31 * DAY_S, -31 * DAY_S):
            machine.wall.advance(jump_s)
            machine.sweep(clock)
    assert clock.now_s == 1000 + MAX_GAP_S


def test_processes_that_share_the_count_do_not_count_twice():
    machine = Machine()
    one, other = machine.start(), machine.start()
    for _ in range(5):
        machine.pass_time(60)
        machine.sweep(one, other)
    machine.wall.advance(3600)  # the machine was asleep
    machine.sweep(one, other)
    assert one.now_s == other.now_s == machine.wall() == 1000 + 300 + 3600


def test_the_count_never_decreases():
    machine = Machine()
    ahead = RetentionClock(wall=machine.wall, monotonic=machine.monotonic)
    ahead.advance(ClockReading(5000, 5000))
    assert ahead.advance(ClockReading(1000, 1000)) == ClockReading(5000, 1000)


@pytest.mark.parametrize(
    ("newest_s", "begins_at"),
    [(None, 1e9), (0.0, MAX_GAP_S), (1e9 - 5, 1e9), (2e9, 1e9)],
)
def test_the_count_starts_near_the_newest_response(newest_s: float | None, begins_at: float):
    clock = RetentionClock(wall=ManualClock(1e9), monotonic=ManualClock())
    assert clock.begin(newest_s=newest_s) == ClockReading(begins_at, 1e9)


def test_before_the_first_reading_the_count_is_the_wall_clock():
    assert RetentionClock(wall=ManualClock(7.0), monotonic=ManualClock()).now_s == 7.0
