"""What stands between the model's logits and the choice of a token, for `model.generate()`.

Temperature, top-k, top-p and min-p are transformers' own and follow these.
Shapes: input_ids (1, num_tokens) int64, scores (1, vocab_size) float32.
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from streaming.backends.token_mask import token_mask
from streaming.generation import Logprob, TokenLogprobs
from streaming.sequence import Sequence


class InvalidLogits(ArithmeticError):
    """The model answered with NaN or infinity."""

    def __str__(self) -> str:
        return "the model's logits are not finite numbers"


class NoTokenAllowed(ArithmeticError):
    """The grammar leaves nothing to choose from."""

    def __str__(self) -> str:
        return "the grammar allows no token"


class RawDistribution(LogitsProcessor):  # type: ignore[misc]
    """First in line: keeps the model's own distribution, and refuses one that is broken."""

    def __init__(self, num_top: int | None) -> None:
        self._num_top = num_top
        self._logprobs = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Single tokens may be masked with -inf; a best one that is not finite is a failure.
        if not bool(torch.isfinite(scores.max())):
            raise InvalidLogits
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


class Penalties(LogitsProcessor):  # type: ignore[misc]
    """Repetition penalty over prompt and output, then presence and frequency over the output.

    Counts are kept up from step to step, so the cost of a step does not grow with the text.
    """

    def __init__(self, sequence: Sequence) -> None:
        self._params = sequence.params
        self._num_prompt_tokens = sequence.num_prompt_tokens
        self._num_seen = 0
        self._is_seen = torch.empty(0, dtype=torch.bool)  # (vocab_size,)
        self._counts = torch.empty(0)  # (vocab_size,) float32: times each token was generated

    @staticmethod
    def are_wanted(sequence: Sequence) -> bool:
        params = sequence.params
        return (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        params, (logits,) = self._params, scores
        if not self._num_seen:
            self._is_seen = torch.zeros_like(logits, dtype=torch.bool)
            self._counts = torch.zeros_like(logits)
        new_ids = input_ids[0, self._num_seen :]
        self._is_seen[new_ids] = True
        generated = input_ids[0, max(self._num_seen, self._num_prompt_tokens) :]
        self._counts.index_add_(0, generated, torch.ones_like(generated, dtype=torch.float32))
        self._num_seen = input_ids.shape[1]

        penalty = params.repetition_penalty
        repeated = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(self._is_seen, repeated, logits)
        logits = logits - params.frequency_penalty * self._counts
        logits = logits - params.presence_penalty * (self._counts > 0)
        return logits[None]


class LogitBias(LogitsProcessor):  # type: ignore[misc]
    """Adds the request's own preferences."""

    def __init__(self, sequence: Sequence, device: torch.device) -> None:
        bias = sequence.params.logit_bias
        self._token_ids = torch.tensor(list(bias), dtype=torch.long, device=device)
        self._values = torch.tensor(list(bias.values()), dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_add(1, self._token_ids, self._values[None])


class MinTokens(LogitsProcessor):  # type: ignore[misc]
    """Bars the tokens that would end the text before `min_tokens`."""

    def __init__(self, sequence: Sequence, device: torch.device) -> None:
        self._sequence = sequence
        self._token_ids = torch.tensor(
            sorted(sequence.barred_token_ids), dtype=torch.long, device=device
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._sequence.must_not_end:
            return scores
        return scores.index_fill(1, self._token_ids, float("-inf"))


class GrammarMask(LogitsProcessor):  # type: ignore[misc]
    """Last in line: leaves the tokens that the grammar allows, by `min_tokens` where it can."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = token_mask(self._sequence, scores.shape[1])
        assert allowed is not None
        scores = scores.masked_fill(~allowed.to(scores.device), float("-inf"))
        if not bool(torch.isfinite(scores.max())):
            raise NoTokenAllowed
        return scores
