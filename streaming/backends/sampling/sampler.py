"""Samples the next token of each sequence of a batch with its own sampling parameters.

Called by the batched runner. A row's token depends only on its own logits, parameters, seed and
position, not on the other rows of the batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf

import torch

from streaming.backend import Chunk, FailedRow, SampledToken
from streaming.backends.sampling.penalties import Penalties
from streaming.backends.sampling.row_failure import NOT_FINITE, no_token_allowed
from streaming.backends.sampling.sampling import (
    TokenSampler,
    allowed_tokens,
    apply_rules,
    sample_tokens,
    sampling_metadata,
)
from streaming.log.generation import Logprob, TokenLogprobs
from streaming.sampling_params import SamplingParams


class Sampler:
    """Samples tokens, and keeps the token counts of sequences with penalties.

    Args:
        token_sampler: samples tokens of rows that are not greedy.
        max_penalized_seqs: maximum number of sequences whose counts are kept from step to step, at
            least the size of a batch. Dropped counts, of preempted sequences, are computed again.
    """

    def __init__(
        self, *, token_sampler: TokenSampler = sample_tokens, max_penalized_seqs: int = 64
    ) -> None:
        self._token_sampler = token_sampler
        self._max_penalized_seqs = max_penalized_seqs
        # By generation id, least recently used first.
        self._penalties: OrderedDict[str, Penalties] = OrderedDict()

    def sample(
        self, logits: torch.Tensor, chunks: SequenceOf[Chunk]
    ) -> list[SampledToken | FailedRow]:
        """Return the next token of each chunk's sequence.

        Args:
            logits: (len(chunks), vocab_size), of any float dtype, as the model computed them. They
                are overwritten.
            chunks: chunks of different sequences; all yield a token.
        """
        ruled = [row for row, chunk in enumerate(chunks) if not _takes_likeliest(chunk)]
        if len(ruled) == len(chunks):
            return self._sample_by_rules(logits, chunks)
        sampled = _sample_likeliest(logits)
        if ruled:
            by_rules = self._sample_by_rules(logits[ruled], [chunks[row] for row in ruled])
            for row, token in zip(ruled, by_rules, strict=True):
                sampled[row] = token
        return sampled

    def forget(self, generation_id: str) -> None:
        """Delete the counts of a sequence that ended."""
        self._penalties.pop(generation_id, None)

    def _sample_by_rules(
        self, logits: torch.Tensor, chunks: SequenceOf[Chunk]
    ) -> list[SampledToken | FailedRow]:
        # Unpack the masks first, while a GPU may still be computing the logits.
        masks = {
            row: mask
            for row, chunk in enumerate(chunks)
            if (mask := allowed_tokens(chunk, logits.shape[-1])) is not None
        }
        logits = logits.float()
        is_finite = logits.amax(dim=-1).isfinite().tolist()
        reported = {
            row: logits[row].log_softmax(dim=-1)
            for row, chunk in enumerate(chunks)
            if chunk.params.logprobs is not None
        }
        for row, chunk in enumerate(chunks):
            penalties = self._penalties_of(chunk, logits.device)
            apply_rules(logits[row], chunk, penalties=penalties, allowed=masks.get(row))
        best, best_ids = logits.max(dim=-1)
        # Do not sample failed rows: their token ids could be invalid and fail the next step.
        failed: dict[int, FailedRow] = {}
        for row, (was_finite, likeliest) in enumerate(zip(is_finite, best.tolist(), strict=True)):
            if not was_finite:
                failed[row] = NOT_FINITE
            elif not math.isfinite(likeliest):
                failed[row] = no_token_allowed(chunks[row], likeliest)
        token_ids = best_ids.tolist()
        metadata = {
            row: sampling_metadata(chunk.params, chunk.output_position)
            for row, chunk in enumerate(chunks)
            if row not in failed and not chunk.params.is_greedy
        }
        if metadata:
            sampled = self._token_sampler(logits, list(metadata), list(metadata.values()))
            for row, token_id in zip(metadata, sampled, strict=True):
                token_ids[row] = token_id
        return [
            failed.get(row)
            or SampledToken(token_id, _report(reported.get(row), token_id, chunk.params))
            for row, (token_id, chunk) in enumerate(zip(token_ids, chunks, strict=True))
        ]

    def _penalties_of(self, chunk: Chunk, device: torch.device) -> Penalties | None:
        if chunk.text_ids is None:
            return None
        generation_id = chunk.sequence.generation_id
        penalties = self._penalties.get(generation_id)
        # A text is shorter than before if an earlier step runs again.
        if penalties is None or penalties.num_taken > len(chunk.text_ids):
            penalties = self._penalties[generation_id] = Penalties(chunk.sequence, device=device)
        self._penalties.move_to_end(generation_id)
        if len(self._penalties) > self._max_penalized_seqs:
            self._penalties.popitem(last=False)
        return penalties


def _takes_likeliest(chunk: Chunk) -> bool:
    """Return whether a row's result is the argmax of the model's logits and nothing else."""
    params = chunk.params
    return (
        params.is_greedy
        and params.logprobs is None
        and not params.logit_bias
        and chunk.text_ids is None
        and chunk.token_mask is None
        and not chunk.must_not_end
    )


def _sample_likeliest(logits: torch.Tensor) -> list[SampledToken | FailedRow]:
    # The maximum is NaN if any logit is. Single tokens may be -inf.
    best, best_ids = logits.max(dim=-1)
    return [
        SampledToken(token_id) if is_finite else NOT_FINITE
        for token_id, is_finite in zip(best_ids.tolist(), best.isfinite().tolist(), strict=True)
    ]


def _report(
    logprobs: torch.Tensor | None, token_id: int, params: SamplingParams
) -> TokenLogprobs | None:
    """Return the log probabilities of a row's chosen token and of its likeliest tokens."""
    if logprobs is None or params.logprobs is None:
        return None
    values, ids = logprobs.topk(min(params.logprobs, logprobs.shape[-1]))
    return TokenLogprobs(
        Logprob(token_id, logprobs[token_id].item()),
        tuple(map(Logprob, ids.tolist(), values.tolist())),
    )
