"""The rules of sampling: how parameters change the logits, and how a token is sampled from them.

First penalties, bias, bans and the grammar (`apply_rules`). Then temperature, top-k, top-p
(Holtzman et al. 2020, arXiv:1904.09751) and min-p, each on what the one before left, as in
transformers; of equally likely tokens, those with lower ids are kept. Then the inverse of the
cumulative distribution over token ids at one uniform number. Random numbers are counter-based, one
for each (seed, position), so a sequence that is preempted and recomputed gets the same ones.
`native/sampling.cpp` is a kernel with the same definition.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator, Philox

from streaming.backend import Chunk
from streaming.backends.sampling.penalties import Penalties
from streaming.sampling_params import SamplingParams

MIN_TEMPERATURE = 1e-4
"""Lower temperatures choose the same tokens and overflow float32."""
_MAX_TOP_K = 2**31 - 1
"""Larger than any vocabulary; larger values do not fit in a tensor."""
_SEED_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingMetadata:
    """The parameters with which one token is sampled.

    Attributes:
        temperature: at least `MIN_TEMPERATURE`.
        top_k: 0 keeps all tokens.
        top_p: 1 keeps all tokens.
        min_p: 0 keeps all tokens.
        uniform: a random number in [0, 1).
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float


TokenSampler = Callable[[torch.Tensor, SequenceOf[int], SequenceOf[SamplingMetadata]], list[int]]
"""Takes logits, (num_rows, vocab_size) float32 without NaN; indices of rows with at least one
finite logit; and the metadata of each of these rows. Returns a token id for each of them."""


def allowed_tokens(chunk: Chunk, vocab_size: int) -> torch.Tensor | None:
    """Return the tokens that a grammar allows, (vocab_size,) bool on the CPU; None without one.

    Excludes tokens that `min_tokens` bans, unless the grammar allows only such tokens: a complete
    text must end.

    Args:
        chunk: the chunk of a sequence.
        vocab_size: width of the model's logits; ids that the tokenizer lacks are not allowed.
    """
    if chunk.token_mask is None:
        return None
    packed = np.frombuffer(chunk.token_mask, dtype=np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[:vocab_size]
    allowed = np.zeros(vocab_size, dtype=bool)
    allowed[: len(bits)] = bits
    if chunk.must_not_end:
        longer = allowed.copy()
        longer[list(chunk.sequence.banned_token_ids)] = False
        if longer.any():
            allowed = longer
    return torch.from_numpy(allowed)


def apply_rules(
    logits: torch.Tensor, chunk: Chunk, *, penalties: Penalties | None, allowed: torch.Tensor | None
) -> None:
    """Apply a request's penalties, `logit_bias`, `min_tokens` and grammar in place.

    Args:
        logits: (vocab_size,) float32, of the next token.
        chunk: the chunk of the sequence.
        penalties: the sequence's penalties; None if the chunk has no `text_ids`.
        allowed: the result of `allowed_tokens`.
    """
    params, banned = chunk.params, chunk.sequence.banned_token_ids
    if penalties is not None and chunk.text_ids is not None:
        penalties.apply(logits, chunk.text_ids)
    if params.logit_bias:
        ids = logits.new_tensor(list(params.logit_bias), dtype=torch.long)
        logits[ids] += logits.new_tensor(list(params.logit_bias.values()))
    if allowed is not None:
        # The mask covers the bans of `min_tokens` where it can.
        logits.masked_fill_(~allowed.to(logits.device), -torch.inf)
    elif chunk.must_not_end and banned:
        logits[logits.new_tensor(list(banned), dtype=torch.long)] = -torch.inf


def sampling_metadata(params: SamplingParams, position: int) -> SamplingMetadata:
    """Return the sampling metadata of the token at a position of the output, 0 for the first."""
    assert params.seed is not None
    return SamplingMetadata(
        temperature=max(params.temperature, MIN_TEMPERATURE),
        top_k=min(params.top_k, _MAX_TOP_K),
        top_p=params.top_p,
        min_p=params.min_p,
        uniform=Generator(Philox(key=params.seed & _SEED_MASK, counter=position)).random(),
    )


def sample_tokens(
    logits: torch.Tensor, rows: SequenceOf[int], metadata: SequenceOf[SamplingMetadata]
) -> list[int]:
    """Sample row by row in torch; a `TokenSampler`."""
    return [_sample(logits[row], of_row) for row, of_row in zip(rows, metadata, strict=True)]


def _sample(logits: torch.Tensor, metadata: SamplingMetadata) -> int:
    # Weights are relative to the likeliest token, whose weight is 1, so none overflows.
    weights = logits.sub(logits.max()).div_(metadata.temperature).exp_()
    if metadata.top_k and metadata.top_k < len(weights):
        weights = _keep_likeliest(weights, metadata.top_k, weights.topk(metadata.top_k).values[-1])
    if metadata.top_p < 1.0:
        weights = _keep_nucleus(weights, metadata.top_p)
    if metadata.min_p:
        weights = weights.masked_fill(weights < metadata.min_p, 0.0)
    cumulated = weights.double().cumsum(dim=-1)
    return int(torch.searchsorted(cumulated, cumulated[-1] * metadata.uniform, right=True))


def _keep_nucleus(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens that has `top_p` of the sum; set others to 0."""
    total = weights.double().sum()
    # All tokens below this sum to less than 1 - top_p, so they are cut off without sorting.
    tail = (1.0 - top_p) / len(weights) * total
    likely = weights[weights >= tail].sort(descending=True).values
    before = likely.double().cumsum(dim=-1) - likely
    num_kept = (before < top_p * total).sum()
    return _keep_likeliest(weights, num_kept, likely[num_kept - 1])


def _keep_likeliest(
    weights: torch.Tensor, num_kept: int | torch.Tensor, least: torch.Tensor
) -> torch.Tensor:
    """Keep the `num_kept` largest weights, the smallest of which is `least`; set others to 0.

    Does not synchronize with a GPU.
    """
    is_above, is_equal = weights > least, weights == least
    num_equal_kept = num_kept - is_above.sum()
    is_kept = is_above | (is_equal & (is_equal.cumsum(dim=-1) <= num_equal_kept))
    return weights.masked_fill(~is_kept, 0.0)
