"""Log probabilities of prompts, which come chunk by chunk as the prompts are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from streaming.backend import Chunk, FailedRow, SampledToken
from streaming.backends.sampling.row_failure import NOT_FINITE
from streaming.log.generation import Logprob, TokenLogprobs

_NUM_SCORED_ROWS = 64
"""Rows at a time: a long chunk's log probabilities would take as much as its logits."""


class PromptScorer:
    """Keeps what is known of the prompts that are being read, until their first token goes out."""

    def __init__(self) -> None:
        self._scored: dict[str, list[TokenLogprobs]] = {}

    @staticmethod
    def num_wanted(chunk: Chunk) -> int:
        """Return how many rows of the chunk, from its first on, come before a token of the prompt.

        The row of the prompt's last token does not: it comes before the answer.
        """
        sequence = chunk.sequence
        if not sequence.wants_prompt_logprobs:
            return 0
        return min(chunk.end, sequence.num_prompt_tokens - 1) - chunk.start

    def take(self, chunk: Chunk, logits: torch.Tensor) -> None:
        """Take the wanted rows of a chunk, (num_wanted, vocab_size).

        A sequence that is computed again, because it had lost its place, begins anew.
        """
        sequence = chunk.sequence
        assert sequence.params.prompt_logprobs is not None
        if chunk.start == 0:
            self._scored[sequence.generation_id] = []
        token_ids = sequence.prompt_ids[chunk.start + 1 : chunk.start + 1 + logits.shape[0]]
        scored = _score(logits, token_ids, sequence.params.prompt_logprobs)
        self._scored[sequence.generation_id] += scored

    def add_to(self, chunk: Chunk, sampled: SampledToken | FailedRow) -> SampledToken | FailedRow:
        """Return a sequence's token, with its prompt if it is the first."""
        sequence = chunk.sequence
        if not sequence.wants_prompt_logprobs or isinstance(sampled, FailedRow):
            return sampled
        scored = self._scored.pop(sequence.generation_id, [])  # none of a prompt of one token
        if any(math.isnan(logprobs.chosen.logprob) for logprobs in scored):
            return NOT_FINITE
        return replace(sampled, prompt_logprobs=tuple(scored))

    def forget(self, generation_id: str) -> None:
        """Forget a sequence that ended, however far it was read."""
        self._scored.pop(generation_id, None)


def _score(logits: torch.Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Return the log probability of each token, and the likeliest others, best first.

    Args:
        logits: (num_tokens, vocab_size), of any float dtype; row i is before token i.
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
