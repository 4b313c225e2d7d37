"""How long a queued request will wait, from the throughput measured so far."""

from __future__ import annotations

from collections.abc import Iterable

from streaming.sequence import Sequence

_WEIGHT = 0.05
"""Weight of the newest step in the running mean: about the last twenty steps count."""


class WaitEstimator:
    """Running means of tokens per second and of completion lengths."""

    def __init__(self) -> None:
        self._tokens_per_s: float | None = None
        self._completion_tokens: float | None = None

    def observe_step(self, *, num_tokens: int, duration_s: float) -> None:
        if num_tokens and duration_s > 0:
            self._tokens_per_s = _mix(self._tokens_per_s, num_tokens / duration_s)

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
        if self._tokens_per_s is None:
            return [None] * len(num_ahead)
        return [num_tokens / self._tokens_per_s for num_tokens in num_ahead]

    def _expected_tokens(self, sequence: Sequence) -> float:
        """Return the tokens still to come: the limit, or less where answers were shorter so far."""
        if self._completion_tokens is None:
            return sequence.num_tokens_left
        return min(
            sequence.num_tokens_left, max(1.0, self._completion_tokens - len(sequence.output_ids))
        )


def _mix(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
