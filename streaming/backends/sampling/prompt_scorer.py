"""Log probabilities of prompts, computed chunk by chunk during prefill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from streaming.backend import Chunk, FailedRow, SampledToken
from streaming.backends.sampling.row_failure import NOT_FINITE
from streaming.log.generation import Logprob, TokenLogprobs

_NUM_SCORED_ROWS = 64
"""Rows scored at a time. Scoring a long chunk at once would double the memory of its logits."""


class PromptScorer:
    """Collects the log probabilities of prompts, chunk by chunk, until the first token."""

    def __init__(self) -> None:
        self._scored: dict[str, list[TokenLogprobs]] = {}

    def take(self, chunk: Chunk, logits: torch.Tensor) -> None:
        """Score the tokens that the first rows of a chunk predict.

        A sequence that is computed again after a preemption starts over.

        Args:
            chunk: a chunk whose `scored_ids` are not empty.
            logits: (len(chunk.scored_ids), vocab_size), of any float dtype.
        """
        sequence = chunk.sequence
        assert sequence.params.prompt_logprobs is not None
        if chunk.start == 0:
            self._scored[sequence.generation_id] = []
        scored = _score(logits, chunk.scored_ids, sequence.params.prompt_logprobs)
        self._scored[sequence.generation_id] += scored

    def add_to(self, chunk: Chunk, sampled: SampledToken | FailedRow) -> SampledToken | FailedRow:
        """Return the token of a chunk, with the prompt's scores if it is the output's first."""
        has_scores = chunk.params.prompt_logprobs is not None and not chunk.output_position
        if not has_scores or isinstance(sampled, FailedRow):
            return sampled
        # A prompt of one token has no scores.
        scored = self._scored.pop(chunk.sequence.generation_id, [])
        if any(math.isnan(logprobs.chosen.logprob) for logprobs in scored):
            return NOT_FINITE
        return replace(sampled, prompt_logprobs=tuple(scored))

    def forget(self, generation_id: str) -> None:
        """Delete the scores of a sequence that ended, even during prefill."""
        self._scored.pop(generation_id, None)


def _score(logits: torch.Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Return the log probability of each token, and the likeliest tokens, best first.

    Args:
        logits: (num_tokens, vocab_size), of any float dtype; row i predicts token i.
        token_ids: the tokens, (num_tokens,).
        num_top: number of likeliest tokens to report.
    """
    scored: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _NUM_SCORED_ROWS):
        ids = token_ids[start : start + _NUM_SCORED_ROWS]
        logprobs = logits[start : start + len(ids)].float().log_softmax(dim=-1)
        chosen = logprobs.gather(1, logits.new_tensor(ids, dtype=torch.long)[:, None])[:, 0]
        top, top_ids = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
        scored += (
            TokenLogprobs(Logprob(token_id, logprob), tuple(map(Logprob, row_ids, row)))
            for token_id, logprob, row_ids, row in zip(
                ids, chosen.tolist(), top_ids.tolist(), top.tolist(), strict=True
            )
        )
    return scored
