"""What the loop does for an engine's thread that does nothing."""

from __future__ import annotations

import pytest

from streaming.engine.watchdog import PATIENCE_S, Watchdog
from streaming.errors import DeadlineExceeded, EngineFailure
from streaming.log.generation import Failed, Finished, FinishReason
from tests.support import ManualClock, make_generation, started_generation

LATE = DeadlineExceeded(timeout_s=5.0)


class FakeThread:
    """The engine's thread, as the watchdog sees it."""

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


def test_a_thread_that_waits_or_steps_is_fine(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    clock.advance(1000.0)
    assert watchdog.failure() is None
    thread.busy_since = clock() - 29.9
    assert watchdog.failure() is None


def test_a_step_that_takes_too_long_is_a_failure(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    thread.busy_since = clock() - 30.0
    assert watchdog.failure() == "one step has taken 30 s, of at most 30"


def test_a_dead_thread_is_a_failure(watchdog: Watchdog, thread: FakeThread):
    thread.is_alive = False
    assert watchdog.failure() == "its thread has ended"


def test_a_stuck_thread_has_its_late_logs_ended(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    cancelled, overdue, running = (started_generation("a") for _ in range(3))
    for number, generation in enumerate((cancelled, overdue, running)):
        generation.generation_id = f"gen_{number}"
        watchdog.expect_end(generation, due_at=clock() + 600.0, error=LATE)
    watchdog.expect_end(cancelled, due_at=clock())
    watchdog.expect_end(overdue, due_at=clock() + 0.5, error=LATE)
    thread.busy_since = clock()
    clock.advance(PATIENCE_S)
    assert watchdog.end_overdue() == [cancelled]
    clock.advance(0.5)
    assert watchdog.end_overdue() == [overdue]
    assert watchdog.end_overdue() == []
    assert cancelled.outcome == Finished(FinishReason.CANCELLED, 101.0)
    assert overdue.outcome == Failed(LATE, 101.5)
    assert not running.is_ended


def test_a_thread_that_steps_ends_its_logs_itself(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    generation = make_generation()
    watchdog.expect_end(generation, due_at=clock())
    clock.advance(60.0)
    for busy_since in (None, clock() - PATIENCE_S / 2):
        thread.busy_since = busy_since
        assert watchdog.end_overdue() == []
    assert not generation.is_ended


def test_a_log_that_has_ended_is_not_ended_again(
    watchdog: Watchdog, thread: FakeThread, clock: ManualClock
):
    forgotten, just_ended = make_generation("gen_1"), make_generation("gen_2")
    for generation in (forgotten, just_ended):
        watchdog.expect_end(generation, due_at=clock())
    failed = Failed(EngineFailure(), 1.0)
    just_ended.end(failed)
    watchdog.forget(forgotten)
    watchdog.forget(forgotten)
    thread.busy_since = clock()
    clock.advance(60.0)
    assert watchdog.end_overdue() == []
    assert (forgotten.outcome, just_ended.outcome) == (None, failed)
