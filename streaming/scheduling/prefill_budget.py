"""Sets the chunked-prefill budget: how many prompt tokens a step may compute beside decodes.

A prompt computed in one step would stall the running streams for the whole of its prefill. While
streams run, a step therefore computes only a chunk of a prompt, sized to make the step about two
and a half times as long as a decode-only step. Both costs are measured. (Chunked prefill: Agrawal
et al. 2023, arXiv:2308.16369.)
"""

from __future__ import annotations

from streaming.scheduling.padding import ceil_to_bucket, floor_to_bucket

_DECODE_WEIGHT = 0.1
_PREFILL_WEIGHT = 0.3
"""Weights of the newest step in the running means. A prompt token costs more the later it comes in
its prompt, so the newest prefill step weighs more."""
_PREFILL_SHARE = 1.5
"""Time for prefill in a step, as a multiple of a decode-only step."""
_MIN_CHUNK_TOKENS = 8
"""Smallest chunk: before there is a measurement, and where even this chunk exceeds its share."""


class PrefillBudget:
    """Measures steps, and computes the prefill budget of the next one.

    Args:
        max_batch_tokens: most tokens in one step.
    """

    def __init__(self, *, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._decode_step_s: float | None = None
        self._num_decodes = 0.0
        self._prefill_token_s: float | None = None

    def observe_step(self, *, num_decodes: int, num_prefill_tokens: int, duration_s: float) -> None:
        """Record a step that took `duration_s` seconds."""
        if not num_prefill_tokens:
            is_first = self._decode_step_s is None
            self._decode_step_s = _mix(self._decode_step_s, duration_s, _DECODE_WEIGHT)
            self._num_decodes = _mix(
                None if is_first else self._num_decodes, num_decodes, _DECODE_WEIGHT
            )
        else:
            # Charge prefill with what the decodes do not explain, and at least a tenth: an
            # overestimated decode step must not make prefill look free.
            decode_s = self._decode_s(num_decodes) if num_decodes else 0.0
            prefill_s = max(duration_s - decode_s, 0.1 * duration_s)
            self._prefill_token_s = _mix(
                self._prefill_token_s, prefill_s / num_prefill_tokens, _PREFILL_WEIGHT
            )

    def num_tokens(self, *, num_decodes: int) -> int:
        """Return how many prompt tokens a step with `num_decodes` decodes may compute."""
        room = max(0, self._max_batch_tokens - num_decodes)
        if not num_decodes:
            return room
        if self._decode_step_s is None:
            return 0  # run a decode-only step now, to have a measurement
        if not self._prefill_token_s:
            num_tokens = 0
        else:
            num_tokens = int(_PREFILL_SHARE * self._decode_s(num_decodes) / self._prefill_token_s)
        # Round down to a padding bucket, so that the step computes no padding.
        bucket = floor_to_bucket(num_decodes + max(_MIN_CHUNK_TOKENS, num_tokens))
        return min(room, max(bucket, ceil_to_bucket(num_decodes + 1)) - num_decodes)

    def _decode_s(self, num_decodes: int) -> float:
        """Return the estimated seconds of a decode-only step.

        Each decode beyond the measured mean is taken to cost as much as a prompt token: while many
        requests arrive, every step has prefill, and no decode-only step can be measured.
        """
        num_more = max(0.0, num_decodes - self._num_decodes)
        return (self._decode_step_s or 0.0) + num_more * (self._prefill_token_s or 0.0)


def _mix(mean: float | None, value: float, weight: float) -> float:
    return value if mean is None else mean + weight * (value - mean)
