"""How many prompt tokens a step may read while others wait for their next token.

A prompt read in one go would freeze the running streams for as long as that takes. So while there
are any, a step reads only as much of a prompt as makes it about two and a half times as long as a
step without; what that is, is measured.
"""

from __future__ import annotations

from streaming.scheduling.padding import ceil_to_bucket, floor_to_bucket

_DECODE_WEIGHT = 0.1
_PREFILL_WEIGHT = 0.3
"""Weights of the newest step in the running means. A prompt's tokens cost more the further it is
read, so the newest counts more."""
_PREFILL_SHARE = 1.5
"""Time for prompts in a step, in units of a step that only decodes."""
_MIN_CHUNK_TOKENS = 8
"""About what is read before measuring, and where even that takes longer than it should."""


class PrefillBudget:
    """Measures steps and sizes the next one.

    Args:
        max_batch_tokens: most tokens in one step.
    """

    def __init__(self, *, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._decode_step_s: float | None = None
        self._num_decodes = 0.0
        self._prefill_token_s: float | None = None

    def observe(self, *, num_decodes: int, num_prefill_tokens: int, duration_s: float) -> None:
        if not num_prefill_tokens:
            is_first = self._decode_step_s is None
            self._decode_step_s = _mix(self._decode_step_s, duration_s, _DECODE_WEIGHT)
            self._num_decodes = _mix(
                None if is_first else self._num_decodes, num_decodes, _DECODE_WEIGHT
            )
        else:
            decode_s = self._decode_s(num_decodes) if num_decodes else 0.0
            prefill_s = max(duration_s - decode_s, 0.1 * duration_s)
            self._prefill_token_s = _mix(
                self._prefill_token_s, prefill_s / num_prefill_tokens, _PREFILL_WEIGHT
            )

    def prefill_budget(self, *, num_decodes: int) -> int:
        """Return how many prompt tokens may join `num_decodes` decoding sequences."""
        room = max(0, self._max_batch_tokens - num_decodes)
        if not num_decodes:
            return room
        if self._decode_step_s is None:
            return 0  # the first step beside others' tokens measures what they take alone
        if not self._prefill_token_s:
            num_tokens = 0
        else:
            num_tokens = int(_PREFILL_SHARE * self._decode_s(num_decodes) / self._prefill_token_s)
        size = floor_to_bucket(num_decodes + max(_MIN_CHUNK_TOKENS, num_tokens))
        return min(room, max(size, ceil_to_bucket(num_decodes + 1)) - num_decodes)

    def _decode_s(self, num_decodes: int) -> float:
        """Estimate a step that only decodes: more sequences than were seen cost a token each.

        While a crowd comes in, every step reads prompts and none is measured alone.
        """
        num_more = max(0.0, num_decodes - self._num_decodes)
        return (self._decode_step_s or 0.0) + num_more * (self._prefill_token_s or 0.0)


def _mix(mean: float | None, value: float, weight: float) -> float:
    return value if mean is None else mean + weight * (value - mean)
