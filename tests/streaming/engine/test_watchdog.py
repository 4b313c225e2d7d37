"""The watchdog's checks of a stuck or dead engine thread."""

from __future__ import annotations

import pytest

from streaming.engine.watchdog import STUCK_AFTER_S, Watchdog
from streaming.errors import DeadlineExceeded, EngineFailure
from streaming.log.generation import Failed, Finished, FinishReason
from tests.support import ManualClock, make_generation, started_generation

LATE = DeadlineExceeded(timeout_s=5.0)


class FakeThread:
    """The engine thread, as the watchdog sees it."""

    def __init__(self) -> None:
        self.is_alive = True
        self.busy_since: float | None = None


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def thread() -> FakeThread:
    return FakeThread()


@pytest.fixture
def watchdog(thread: FakeThread, clock: ManualClock) -> Watchdog:
    return Watchdog(thread, step_timeout_s=30.0, clock=clock)


def test_an_idle_or_stepping_thread_is_no_failure(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    clock.advance(1000.0)
    assert watchdog.failure_reason() is None
    thread.busy_since = clock() - 29.9
    assert watchdog.failure_reason() is None


def test_a_step_that_takes_too_long_is_a_failure(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    thread.busy_since = clock() - 30.0
    assert watchdog.failure_reason() == "one step has taken 30 s (limit 30 s)"


def test_a_dead_thread_is_a_failure(watchdog: Watchdog, thread: FakeThread):
    thread.is_alive = False
    assert watchdog.failure_reason() == "its thread has ended"


def test_overdue_logs_of_a_stuck_thread_are_ended(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    cancelled, overdue, running = (started_generation("a") for _ in range(3))
    for number, generation in enumerate((cancelled, overdue, running)):
        generation.generation_id = f"gen_{number}"
        watchdog.expect_end(generation, due_at=clock() + 600.0, error=LATE)
    watchdog.expect_end(cancelled, due_at=clock())
    watchdog.expect_end(overdue, due_at=clock() + 0.5, error=LATE)
    thread.busy_since = clock()
    clock.advance(STUCK_AFTER_S)
    assert watchdog.end_overdue() == [cancelled]
    clock.advance(0.5)
    assert watchdog.end_overdue() == [overdue]
    assert watchdog.end_overdue() == []
    assert cancelled.outcome == Finished(FinishReason.CANCELLED, 101.0)
    assert overdue.outcome == Failed(LATE, 101.5)
    assert not running.is_ended


def test_overdue_logs_of_a_stepping_thread_are_left_to_it(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    generation = make_generation()
    watchdog.expect_end(generation, due_at=clock())
    clock.advance(60.0)
    for busy_since in (None, clock() - STUCK_AFTER_S / 2):
        thread.busy_since = busy_since
        assert watchdog.end_overdue() == []
    assert not generation.is_ended


def test_a_log_that_has_ended_is_not_ended_again(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    removed, just_ended = make_generation("gen_1"), make_generation("gen_2")
    for generation in (removed, just_ended):
        watchdog.expect_end(generation, due_at=clock())
    failed = Failed(EngineFailure(), 1.0)
    just_ended.end(failed)
    watchdog.remove(removed)
    watchdog.remove(removed)
    thread.busy_since = clock()
    clock.advance(60.0)
    assert watchdog.end_overdue() == []
    assert (removed.outcome, just_ended.outcome) == (None, failed)
