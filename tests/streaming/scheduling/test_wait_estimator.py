"""Forecasts from measured steps."""

from __future__ import annotations

import pytest

from streaming.scheduling.wait_estimator import WaitEstimator
from streaming.sequence import Sequence
from tests.support import make_sequence


def waits_s(
    estimator: WaitEstimator, running: list[Sequence], waiting: list[Sequence]
) -> list[float | None]:
    """Return the expected wait of each waiting sequence, and last that of a new one."""
    newcomer = make_sequence("newcomer")
    forecast = estimator.forecast(running, [*waiting, newcomer], at=0.0)
    if forecast is None:
        return [None] * (len(waiting) + 1)
    return [expected.starts_in_s for expected in forecast.expected[len(running) :]]


class CountedLook:
    """Stands in for a sequence, and counts the reads of `num_tokens_left`."""

    output_ids = ()
    generation = None

    def __init__(self) -> None:
        self.num_looks = 0

    @property
    def num_tokens_left(self) -> int:
        self.num_looks += 1
        return 10


def test_there_is_no_forecast_before_the_first_measurement():
    estimator = WaitEstimator()
    a, b = make_sequence("a"), make_sequence("b")
    assert waits_s(estimator, [], []) == [None]
    assert waits_s(estimator, [a], [b]) == [None, None]


def test_a_wait_includes_all_tokens_ahead_at_the_measured_rate():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=20, duration_s=2.0)
    running, first, second = (make_sequence(max_tokens=num) for num in (50, 30, 20))
    assert waits_s(estimator, [], []) == [0.0]
    assert waits_s(estimator, [running], [first, second]) == [5.0, 8.0, 10.0]


def test_generated_tokens_are_no_longer_ahead():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=10, duration_s=1.0)
    running = make_sequence(max_tokens=50)
    for _ in range(20):
        running.append(ord("x"), at=0.0)
    assert waits_s(estimator, [running], []) == [3.0]


def test_short_completions_shorten_the_wait():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=10, duration_s=1.0)
    estimator.observe_end(num_tokens=30)
    long, short = make_sequence(max_tokens=1000), make_sequence(max_tokens=20)
    assert waits_s(estimator, [long], []) == [3.0]
    assert waits_s(estimator, [short], []) == [2.0]


def test_a_completion_longer_than_the_mean_takes_one_more_token():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=10, duration_s=1.0)
    estimator.observe_end(num_tokens=2)
    running = make_sequence(max_tokens=50)
    for _ in range(5):
        running.append(ord("x"), at=0.0)
    assert waits_s(estimator, [running], []) == [0.1]


def test_the_time_of_prefill_only_steps_counts():
    estimator = WaitEstimator()
    running = make_sequence(max_tokens=20)
    for _ in range(100):  # two tokens each, the first one after seven steps without any
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


def test_the_forecast_is_linear_in_the_queue():
    """With a sum over the queue per position, a queue of 256 cost 11 ms per change."""
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=10, duration_s=1.0)
    queue = [CountedLook() for _ in range(256)]
    assert waits_s(estimator, [], queue) == [  # type: ignore[arg-type]
        float(n) for n in range(257)
    ]
    assert [look.num_looks for look in queue] == [1] * 256


def test_a_waiting_sequence_starts_when_the_first_running_one_ends():
    estimator = WaitEstimator()
    estimator.observe_step(num_tokens=2, duration_s=0.2, num_running=2)
    running = [make_sequence(max_tokens=num) for num in (50, 10)]
    waiting = [make_sequence(max_tokens=num) for num in (15, 30)]
    forecast = estimator.forecast(running, waiting, at=7.0)
    assert forecast is not None
    assert forecast.at == 7.0
    begins = [expected.starts_in_s for expected in forecast.expected]
    ends = [expected.ends_in_s for expected in forecast.expected]
    assert begins == pytest.approx([0.0, 0.0, 2.0, 5.0])
    assert ends == pytest.approx([10.0, 2.0, 5.0, 11.0])
    logs = [sequence.generation for sequence in (*running, *waiting)]
    assert [expected.generation for expected in forecast.expected] == logs


def test_a_smaller_batch_has_a_lower_throughput():
    """A single sequence does not get the throughput of the larger batch before it."""
    estimator = WaitEstimator()
    for _ in range(50):
        estimator.observe_step(num_tokens=8, duration_s=0.1, num_running=8)
    assert waits_s(estimator, [make_sequence(max_tokens=30)], []) == [pytest.approx(3.0)]
