"""How long a queued request will wait, from the throughput measured so far."""

from __future__ import annotations

from collections.abc import Iterable

from streaming.sequence import Sequence

_WEIGHT = 0.05
"""What of the past each new value displaces: about the last twenty count."""


class WaitEstimator:
    """Recent tokens and the time that they took, and a running mean of completion lengths."""

    def __init__(self) -> None:
        self._num_tokens = 0.0
        self._duration_s = 0.0
        self._unyielding_s = 0.0
        """Taken since the last token, by steps that only read prompts."""
        self._completion_tokens: float | None = None

    def observe_step(self, *, num_tokens: int, duration_s: float) -> None:
        """Take a step; one that yields nothing is counted as part of the next one that does."""
        self._unyielding_s += duration_s
        if num_tokens and self._unyielding_s > 0:
            self._num_tokens += num_tokens - _WEIGHT * self._num_tokens
            self._duration_s += self._unyielding_s - _WEIGHT * self._duration_s
            self._unyielding_s = 0.0

    def observe_end(self, *, num_tokens: int) -> None:
        self._completion_tokens = _mix(self._completion_tokens, num_tokens)

    def waits_s(
        self, running: Iterable[Sequence], waiting: Iterable[Sequence]
    ) -> list[float | None]:
        """Return how long each of `waiting` will wait, and last, how long one that came now would.

        All are None before the first measurement.
        """
        num_tokens = sum(self._expected_tokens(sequence) for sequence in running)
        num_ahead = [num_tokens]
        for sequence in waiting:
            num_tokens += self._expected_tokens(sequence)
            num_ahead.append(num_tokens)
        if not self._num_tokens:
            return [None] * len(num_ahead)
        return [num_tokens * self._duration_s / self._num_tokens for num_tokens in num_ahead]

    def _expected_tokens(self, sequence: Sequence) -> float:
        """Return the tokens still to come: the limit, or less where answers were shorter so far."""
        if self._completion_tokens is None:
            return sequence.num_tokens_left
        return min(
            sequence.num_tokens_left, max(1.0, self._completion_tokens - len(sequence.output_ids))
        )


def _mix(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
