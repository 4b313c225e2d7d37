"""What stands between the model's logits and the choice of a token, for `model.generate()`.

Temperature, top-k, top-p and min-p are transformers' own and follow these.
Shapes: input_ids (1, num_tokens) int64, scores (1, vocab_size) float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LogitsProcessor

from streaming.backend import Chunk, SequenceInput
from streaming.backends.sampling.penalties import Penalties
from streaming.backends.sampling.row_failure import NOT_FINITE, RowFailed, no_token_allowed
from streaming.backends.sampling.sampling import allowed_tokens
from streaming.log.generation import Logprob, TokenLogprobs

CurrentChunk = Callable[[], Chunk]
"""Returns the chunk of the step that runs."""


class RawDistribution(LogitsProcessor):  # type: ignore[misc]
    """First in line: keeps the model's own distribution, and refuses one that is broken.

    Args:
        num_top: how many of the likeliest tokens are reported; None reports nothing.
        vocab_size: tokens from here on, which pad the model's head, are cut off.
    """

    def __init__(self, num_top: int | None, *, vocab_size: int) -> None:
        self._num_top = num_top
        self._vocab_size = vocab_size
        self._logprobs = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores[:, : self._vocab_size]
        # Single tokens may be masked with -inf; a best one that is not finite is a failure.
        if not bool(torch.isfinite(scores.max())):
            raise RowFailed(NOT_FINITE)
        if self._num_top is not None:
            self._logprobs = torch.log_softmax(scores[0], dim=-1)
        return scores

    def logprobs_of(self, token_id: int) -> TokenLogprobs | None:
        """Return the token's natural-log probability and the likeliest ones, if they are wanted."""
        if self._num_top is None:
            return None
        values, ids = self._logprobs.topk(min(self._num_top, self._logprobs.numel()))
        top = zip(ids.tolist(), values.tolist(), strict=True)
        return TokenLogprobs(
            Logprob(token_id, float(self._logprobs[token_id])),
            tuple(Logprob(top_id, logprob) for top_id, logprob in top),
        )


class Penalized(LogitsProcessor):  # type: ignore[misc]
    """Applies the penalties of one sequence."""

    def __init__(self, current_chunk: CurrentChunk, device: torch.device) -> None:
        self._current_chunk = current_chunk
        self._penalties = Penalties(current_chunk().sequence, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        text_ids = self._current_chunk().text_ids
        assert text_ids is not None
        scores = scores.clone()
        self._penalties.apply(scores[0], text_ids)
        return scores


class LogitBias(LogitsProcessor):  # type: ignore[misc]
    """Adds the request's own preferences."""

    def __init__(self, sequence: SequenceInput, device: torch.device) -> None:
        bias = sequence.params.logit_bias
        self._token_ids = torch.tensor(list(bias), dtype=torch.long, device=device)
        self._values = torch.tensor(list(bias.values()), dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_add(1, self._token_ids, self._values[None])


class MinTokens(LogitsProcessor):  # type: ignore[misc]
    """Bans the tokens that would end the text before `min_tokens`."""

    def __init__(self, current_chunk: CurrentChunk, device: torch.device) -> None:
        self._current_chunk = current_chunk
        banned = sorted(current_chunk().sequence.banned_token_ids)
        self._token_ids = torch.tensor(banned, dtype=torch.long, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._current_chunk().must_not_end:
            return scores
        return scores.index_fill(1, self._token_ids, float("-inf"))


class GrammarMask(LogitsProcessor):  # type: ignore[misc]
    """Leaves the tokens that `allowed_tokens` returns."""

    def __init__(self, current_chunk: CurrentChunk) -> None:
        self._current_chunk = current_chunk

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = allowed_tokens(self._current_chunk(), scores.shape[1])
        assert allowed is not None
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))


class SomeTokenLeft(LogitsProcessor):  # type: ignore[misc]
    """Last in line: raises `RowFailed` where the others leave nothing to choose from."""

    def __init__(self, current_chunk: CurrentChunk) -> None:
        self._current_chunk = current_chunk

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best = scores.max()
        if not bool(torch.isfinite(best)):
            raise RowFailed(no_token_allowed(self._current_chunk(), float(best)))
        return scores
