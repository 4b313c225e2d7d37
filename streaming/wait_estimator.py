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

    def wait_s(self, ahead: Iterable[Sequence]) -> float | None:
        """Return the time that those ahead still take; None before the first measurement."""
        if self._tokens_per_s is None:
            return None
        return sum(self._expected_tokens(sequence) for sequence in ahead) / self._tokens_per_s

    def _expected_tokens(self, sequence: Sequence) -> float:
        """Return the tokens still to come: the limit, or less where answers were shorter so far."""
        if self._completion_tokens is None:
            return sequence.num_tokens_left
        return min(
            sequence.num_tokens_left, max(1.0, self._completion_tokens - len(sequence.output_ids))
        )


def _mix(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
