"""Logits processors of `model.generate()`, for the generate backend.

They apply the rules of `sampling` to the logits. Temperature, top-k, top-p, min-p and the choice of
the token, which follow, are those of transformers: this backend is the reference for the batched
one.
Shapes: input_ids (1, num_tokens) int64, scores (1, vocab_size) float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from transformers import LogitsProcessor

from streaming.backend import Chunk
from streaming.backends.sampling.penalties import Penalties
from streaming.backends.sampling.row_failure import NOT_FINITE, RowFailed, no_token_allowed
from streaming.backends.sampling.sampling import allowed_tokens, apply_rules
from streaming.log.generation import Logprob, TokenLogprobs


class RawDistribution(LogitsProcessor):  # type: ignore[misc]
    """The first processor. Records the model's own distribution, for log probabilities.

    Args:
        num_top: number of likeliest tokens to report; None reports no log probabilities.
        vocab_size: logits of larger ids, which are padding of the model's head, are cut off.
    """

    def __init__(self, num_top: int | None, *, vocab_size: int) -> None:
        self._num_top = num_top
        self._vocab_size = vocab_size
        self._logprobs = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores without padding, (1, vocab_size).

        Raises:
            RowFailed: the scores are not finite.
        """
        scores = scores[:, : self._vocab_size]
        # Single tokens may be -inf; a maximum that is not finite is a failure.
        if not bool(torch.isfinite(scores.max())):
            raise RowFailed(NOT_FINITE)
        if self._num_top is not None:
            self._logprobs = torch.log_softmax(scores[0], dim=-1)
        return scores

    def logprobs_of(self, token_id: int) -> TokenLogprobs | None:
        """Return the token's natural-log probability and the likeliest tokens.

        None if `num_top` is None.
        """
        if self._num_top is None:
            return None
        values, ids = self._logprobs.topk(min(self._num_top, self._logprobs.numel()))
        top = zip(ids.tolist(), values.tolist(), strict=True)
        return TokenLogprobs(
            Logprob(token_id, float(self._logprobs[token_id])),
            tuple(Logprob(top_id, logprob) for top_id, logprob in top),
        )


class RequestRules(LogitsProcessor):  # type: ignore[misc]
    """The last processor. Applies a request's rules with `apply_rules`, as the batched runner does.

    Args:
        current_chunk: returns the chunk of the current step.
        device: the device of the scores.
    """

    def __init__(self, current_chunk: Callable[[], Chunk], device: torch.device) -> None:
        self._current_chunk = current_chunk
        self._penalties = Penalties(current_chunk().sequence, device=device)

    @staticmethod
    def are_needed(chunk: Chunk) -> bool:
        """Return whether a request has any rules for `apply_rules`.

        Args:
            chunk: the first chunk of the sequence.
        """
        params = chunk.params
        return bool(
            params.has_penalties
            or params.logit_bias
            or chunk.token_mask is not None
            or (params.min_tokens and chunk.sequence.banned_token_ids)
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with the rules applied, (1, vocab_size).

        Raises:
            RowFailed: the rules allow no token, or make the logits infinite.
        """
        chunk, scores = self._current_chunk(), scores.clone()
        allowed = allowed_tokens(chunk, scores.shape[1])
        apply_rules(scores[0], chunk, penalties=self._penalties, allowed=allowed)
        best = float(scores.max())
        if not math.isfinite(best):
            raise RowFailed(no_token_allowed(chunk, best))
        return scores
