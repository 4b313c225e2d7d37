"""Forecasts when requests will start and end, from the throughput measured so far.

The engine owns the estimator. The forecast gives queued clients their wait, and refused clients
their `Retry-After`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from streaming.log.generation import Generation
from streaming.sequence import Sequence

_WEIGHT = 0.05
"""Weight of a new value in the running means, which cover about the last twenty values."""


@dataclass(frozen=True, slots=True)
class Expected:
    """When a generation is expected to start and to end, in seconds after `Forecast.at`."""

    generation: Generation
    starts_in_s: float
    ends_in_s: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected times of all open generations. Immutable, so any thread may read it.

    Attributes:
        at: when the forecast was made, in monotonic seconds.
        expected: running generations first, then waiting ones in the order of service.
    """

    at: float
    expected: tuple[Expected, ...]


class WaitEstimator:
    """Measures the recent speed of one sequence and the mean completion length."""

    def __init__(self) -> None:
        self._num_tokens = 0.0
        self._running_s = 0.0
        """Seconds that these tokens took, times the number of running sequences."""
        self._pending_s = 0.0
        """The same for the prefill-only steps since the last token."""
        self._completion_tokens: float | None = None

    def observe_step(self, *, num_tokens: int, duration_s: float, num_running: int = 1) -> None:
        """Record a step that yielded `num_tokens` tokens in `duration_s` seconds.

        A step that yields no token counts as part of the next step that does.
        """
        self._pending_s += duration_s * num_running
        if num_tokens and self._pending_s > 0:
            self._num_tokens += num_tokens - _WEIGHT * self._num_tokens
            self._running_s += self._pending_s - _WEIGHT * self._running_s
            self._pending_s = 0.0

    def observe_end(self, *, num_tokens: int) -> None:
        """Record the length of a completion, in tokens."""
        self._completion_tokens = _mix(self._completion_tokens, num_tokens)

    def forecast(
        self, running: SequenceOf[Sequence], waiting: SequenceOf[Sequence], *, at: float
    ) -> Forecast | None:
        """Return when each sequence will start and end; None before the first measurement.

        The forecast assumes that as many sequences run as now, each at the recent speed, and that
        a waiting one starts when a running one ends.

        Args:
            running: running sequences.
            waiting: waiting sequences, the next one first.
            at: the present time, in monotonic seconds.
        """
        if not self._num_tokens:
            return None
        token_s = self._running_s / self._num_tokens
        num_places = max(1, len(running))
        tokens_left = [self._expected_tokens(sequence) for sequence in running]
        expected = [
            Expected(sequence.generation, 0.0, num_tokens * token_s)
            for sequence, num_tokens in zip(running, tokens_left, strict=True)
        ]
        # Simulate the places as a heap: tokens until each one is free, the next one first.
        places = [*tokens_left, *[0.0] * (num_places - len(running))]
        heapq.heapify(places)
        for sequence in waiting:
            starts = places[0]
            ends = starts + self._expected_tokens(sequence)
            heapq.heapreplace(places, ends)
            expected.append(Expected(sequence.generation, starts * token_s, ends * token_s))
        return Forecast(at, tuple(expected))

    def _expected_tokens(self, sequence: Sequence) -> float:
        """Return the expected tokens to come, from the limit and the mean completion length."""
        if self._completion_tokens is None:
            return sequence.num_tokens_left
        return min(
            sequence.num_tokens_left, max(1.0, self._completion_tokens - len(sequence.output_ids))
        )


def _mix(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
