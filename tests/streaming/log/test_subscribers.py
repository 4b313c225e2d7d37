"""The last subscriber that leaves starts the grace period, whose end cancels the log."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streaming.log.generation import Finished, FinishReason, Generation
from streaming.log.subscribers import Subscribers
from tests.support import make_generation


class ManualTimer:
    def __init__(self, delay_s: float, call: Callable[[], None]) -> None:
        self.delay_s = delay_s
        self.fire = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Rig:
    """Subscribers, and the calls that they made, in order."""

    def __init__(self) -> None:
        self.timers: list[ManualTimer] = []
        self.done: list[object] = []
        self.subscribers = Subscribers(
            cancel=lambda generation: self.done.append(f"cancel {generation.generation_id}"),
            set_detached=lambda generation_id, is_detached: self.done.append(
                f"{'detach' if is_detached else 'attach'} {generation_id}"
            ),
            call_later=self._call_later,
        )

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> ManualTimer:
        self.timers.append(ManualTimer(delay_s, call))
        return self.timers[-1]

    def leave_in_grace(self, generation: Generation) -> ManualTimer:
        """Add and remove a subscriber, and return the timer of the grace period."""
        self.subscribers.add(generation)
        self.subscribers.remove(generation, grace_s=5.0)
        return self.timers[-1]


@pytest.mark.parametrize("grace_s", [0.0, 5.0])
def test_a_subscriber_that_leaves_changes_nothing_while_another_stays(grace_s: float):
    rig, log = Rig(), make_generation("a")
    rig.subscribers.add(log)
    rig.subscribers.add(log)
    rig.subscribers.remove(log, grace_s=grace_s)
    assert (rig.done, rig.timers, rig.subscribers.in_grace) == ([], [], set())


def test_without_grace_the_last_subscriber_cancels():
    rig, log, other = Rig(), make_generation("a"), make_generation("b")
    rig.subscribers.add(log)
    rig.subscribers.add(other)
    rig.subscribers.remove(log, grace_s=0.0)
    assert (rig.done, rig.timers) == (["cancel a"], [])


def test_with_a_grace_the_log_is_detached_and_then_cancelled():
    rig, log = Rig(), make_generation("a")
    timer = rig.leave_in_grace(log)
    assert (rig.done, timer.delay_s, rig.subscribers.in_grace) == (["detach a"], 5.0, {"a"})
    timer.fire()
    assert (rig.done, rig.subscribers.in_grace) == (["detach a", "cancel a"], set())


def test_a_subscriber_that_comes_back_ends_the_grace_and_may_start_another():
    rig, log = Rig(), make_generation("a")
    first = rig.leave_in_grace(log)
    second = rig.leave_in_grace(log)
    assert rig.done == ["detach a", "attach a", "detach a"]
    assert (first.is_cancelled, second.is_cancelled) == (True, False)
    assert rig.subscribers.in_grace == {"a"}


def test_an_ended_log_has_no_grace():
    rig, log = Rig(), make_generation("a")
    rig.subscribers.add(log)
    log.end(Finished(FinishReason.STOP, at=1.0))
    rig.subscribers.remove(log, grace_s=5.0)
    rig.subscribers.add(log)
    rig.subscribers.remove(log, grace_s=0.0)
    assert (rig.done, rig.timers, rig.subscribers.in_grace) == ([], [], set())


def test_a_grace_ends_once():
    rig, log = Rig(), make_generation("a")
    timer = rig.leave_in_grace(log)
    assert rig.subscribers.end_grace("a")
    assert timer.is_cancelled
    assert not rig.subscribers.end_grace("a")
    assert rig.done == ["detach a"]


def test_all_graces_end_together():
    rig = Rig()
    timers = [rig.leave_in_grace(make_generation(name)) for name in "abc"]
    rig.subscribers.end_all_graces()
    assert rig.subscribers.in_grace == set()
    assert [timer.is_cancelled for timer in timers] == [True] * 3
