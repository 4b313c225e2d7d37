"""How long the queue says that it takes."""

from __future__ import annotations

import pytest

from streaming.scheduling.wait_estimator import WaitEstimator
from streaming.sequence import Sequence
from tests.support import make_sequence


def waits_s(
    estimator: WaitEstimator, running: list[Sequence], waiting: list[Sequence]
) -> list[float | None]:
    """Return how long each that waits will do so, and last, how long one that came now would."""
    newcomer = make_sequence("newcomer")
    outlook = estimator.outlook(running, [*waiting, newcomer], at=0.0)
    if outlook is None:
        return [None] * (len(waiting) + 1)
    return [expected.begins_in_s for expected in outlook.expected[len(running) :]]


class CountedLook:
    """Stands for a sequence; counts how often its rest is looked at."""

    output_ids = ()
    generation = None

    def __init__(self) -> None:
        self.num_looks = 0

    @property
    def num_tokens_left(self) -> int:
        self.num_looks += 1
        return 10


def test_before_the_first_measurement_nobody_knows():
    estimator = WaitEstimator()
    a, b = make_sequence("a"), make_sequence("b")
    assert waits_s(estimator, [], []) == [None]
    assert waits_s(estimator, [a], [b]) == [None, None]


def test_everything_ahead_counts_at_the_measured_rate():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=20, duration_s=2.0)
    running, first, second = (make_sequence(max_tokens=num) for num in (50, 30, 20))
    assert waits_s(estimator, [], []) == [0.0]
    assert waits_s(estimator, [running], [first, second]) == [5.0, 8.0, 10.0]


def test_what_has_been_said_is_no_longer_ahead():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=10, duration_s=1.0)
    running = make_sequence(max_tokens=50)
    for _ in range(20):
        running.append(ord("x"), at=0.0)
    assert waits_s(estimator, [running], []) == [3.0]


def test_answers_that_were_shorter_than_allowed_make_the_wait_shorter():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=10, duration_s=1.0)
    estimator.observe_end(num_tokens=30)
    long, short = make_sequence(max_tokens=1000), make_sequence(max_tokens=20)
    assert waits_s(estimator, [long], []) == [3.0]
    assert waits_s(estimator, [short], []) == [2.0]


def test_an_answer_longer_than_expected_still_takes_a_token():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=10, duration_s=1.0)
    estimator.observe_end(num_tokens=2)
    running = make_sequence(max_tokens=50)
    for _ in range(5):
        running.append(ord("x"), at=0.0)
    assert waits_s(estimator, [running], []) == [0.1]


def test_the_time_of_steps_that_only_read_a_prompt_counts():
    estimator = WaitEstimator()
    running = make_sequence(max_tokens=20)
    for _ in range(100):  # answers of two tokens, the first one after seven steps without any
        for num_tokens in (*[0] * 7, 1, 1):
            estimator.observe_step(num_tokens=num_tokens, duration_s=1.0)
        assert waits_s(estimator, [running], []) == [pytest.approx(90.0, rel=0.05)]


@pytest.mark.parametrize(("num_tokens", "duration_s"), [(0, 1.0), (5, 0.0)])
def test_a_step_without_tokens_or_time_measures_nothing(num_tokens: int, duration_s: float):
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=num_tokens, duration_s=duration_s)
    assert waits_s(estimator, [], []) == [None]


def test_the_mean_follows_a_change_without_jumping():
    estimator = WaitEstimator()
    for _ in range(20):
        estimator.observe_step(num_tokens=10, duration_s=1.0)
    running = make_sequence(max_tokens=100)
    estimator.observe_step(num_tokens=100, duration_s=1.0)
    [after_one] = waits_s(estimator, [running], [])
    assert after_one is not None
    assert 5.0 < after_one < 10.0
    for _ in range(200):
        estimator.observe_step(num_tokens=100, duration_s=1.0)
    assert waits_s(estimator, [running], []) == [pytest.approx(1.0, rel=0.01)]


def test_each_sequence_is_looked_at_once_however_long_the_queue():
    """With a sum for each place, a queue of 256 cost 11 ms of each step that changed it."""
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=10, duration_s=1.0)
    queue = [CountedLook() for _ in range(256)]
    assert waits_s(estimator, [], queue) == [  # type: ignore[arg-type]
        float(n) for n in range(257)
    ]
    assert [look.num_looks for look in queue] == [1] * 256


def test_who_waits_begins_when_the_first_of_those_that_run_ends():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=2, duration_s=0.2, num_running=2)
    running = [make_sequence(max_tokens=num) for num in (50, 10)]
    waiting = [make_sequence(max_tokens=num) for num in (15, 30)]
    outlook = estimator.outlook(running, waiting, at=7.0)
    assert outlook is not None
    assert outlook.at == 7.0
    begins = [expected.begins_in_s for expected in outlook.expected]
    ends = [expected.ends_in_s for expected in outlook.expected]
    assert begins == pytest.approx([0.0, 0.0, 2.0, 5.0])
    assert ends == pytest.approx([10.0, 2.0, 5.0, 11.0])
    logs = [sequence.generation for sequence in (*running, *waiting)]
    assert [expected.generation for expected in outlook.expected] == logs


def test_a_crowd_that_leaves_takes_its_throughput_along():
    """One alone is no faster than it was, only because many tokens came in each step before."""
    estimator = WaitEstimator()
    for _ in range(50):
        estimator.observe_step(num_tokens=8, duration_s=0.1, num_running=8)
    assert waits_s(estimator, [make_sequence(max_tokens=30)], []) == [pytest.approx(3.0)]
