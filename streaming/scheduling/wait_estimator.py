"""When queued requests will begin and end, from the throughput measured so far."""

from __future__ import annotations

import heapq
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from streaming.log.generation import Generation
from streaming.sequence import Sequence

_WEIGHT = 0.05
"""What of the past each new value displaces: about the last twenty count."""


@dataclass(frozen=True, slots=True)
class Expected:
    """When a generation is expected to begin and to end, in seconds from the outlook's moment."""

    generation: Generation
    begins_in_s: float
    ends_in_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of all open generations, as of `at` in monotonic seconds.

    Running ones come first, then those that wait, the next one first. Immutable, so any thread may
    read it.
    """

    at: float
    expected: tuple[Expected, ...]


class WaitEstimator:
    """The pace of one sequence of late, and a running mean of completion lengths."""

    def __init__(self) -> None:
        self._num_tokens = 0.0
        self._running_s = 0.0
        """Seconds that these tokens took, counted once for each sequence that ran."""
        self._unyielding_s = 0.0
        """The same, since the last token, of steps that only read prompts."""
        self._completion_tokens: float | None = None

    def observe_step(self, *, num_tokens: int, duration_s: float, num_running: int = 1) -> None:
        """Take a step; one that yields nothing is counted as part of the next one that does."""
        self._unyielding_s += duration_s * num_running
        if num_tokens and self._unyielding_s > 0:
            self._num_tokens += num_tokens - _WEIGHT * self._num_tokens
            self._running_s += self._unyielding_s - _WEIGHT * self._running_s
            self._unyielding_s = 0.0

    def observe_end(self, *, num_tokens: int) -> None:
        self._completion_tokens = _mix(self._completion_tokens, num_tokens)

    def outlook(
        self, running: SequenceOf[Sequence], waiting: SequenceOf[Sequence], *, at: float
    ) -> Outlook | None:
        """Return when each will begin and end; None before the first measurement.

        As many as run now are taken to run then, each at the pace of late: who waits begins when
        one ends.

        Args:
            waiting: the next one first.
            at: this moment, in monotonic seconds.
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
        # What each place has to say until it is free, the next one first.
        places = [*tokens_left, *[0.0] * (num_places - len(running))]
        heapq.heapify(places)
        for sequence in waiting:
            begins = places[0]
            ends = begins + self._expected_tokens(sequence)
            heapq.heapreplace(places, ends)
            expected.append(Expected(sequence.generation, begins * token_s, ends * token_s))
        return Outlook(at, tuple(expected))

    def _expected_tokens(self, sequence: Sequence) -> float:
        """Return the tokens still to come: the limit, or less where answers were shorter so far."""
        if self._completion_tokens is None:
            return sequence.num_tokens_left
        return min(
            sequence.num_tokens_left, max(1.0, self._completion_tokens - len(sequence.output_ids))
        )


def _mix(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
