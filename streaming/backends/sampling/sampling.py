"""The rules of sampling: what a request's parameters do to the logits, and how a token is drawn.

First penalties, bias, bans and the grammar (`apply_rules`). Then temperature, top-k, top-p
(Holtzman et al. 2020, arXiv:1904.09751) and min-p, each on what the one before left, as in
transformers; of equally likely tokens, those with lower ids are kept. Then the inverse of the
cumulative distribution over token ids at one uniform number. Random numbers are counter-based, one
for each (seed, position), so a sequence that is preempted and recomputed draws the same ones.
`native/sampling.cpp` does the draws in a kernel, by the same definition.
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
"""Lower ones choose the same tokens and overflow float32."""
_MAX_TOP_K = 2**31 - 1
"""More than any vocabulary; larger numbers do not fit a tensor."""
_SEED_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingMetadata:
    """How one token is drawn.

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


Draw = Callable[[torch.Tensor, SequenceOf[int], SequenceOf[SamplingMetadata]], list[int]]
"""Takes logits, (num_rows, vocab_size) float32 without NaN; the numbers of some rows, each with a
finite logit; and the metadata of each of these. Returns their tokens."""


def allowed_tokens(chunk: Chunk, vocab_size: int) -> torch.Tensor | None:
    """Return the tokens that a grammar allows, (vocab_size,) bool on the CPU; None without one.

    Tokens that `min_tokens` bans are left out too, unless no other token is allowed: a complete
    text has to end.

    Args:
        chunk: of the sequence with the grammar.
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
        chunk: of the sequence.
        penalties: of the sequence; None if the chunk has no `text_ids`.
        allowed: result of `allowed_tokens`.
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
    """Return how to draw the token at a position of the output, 0 for the first."""
    assert params.seed is not None
    return SamplingMetadata(
        temperature=max(params.temperature, MIN_TEMPERATURE),
        top_k=min(params.top_k, _MAX_TOP_K),
        top_p=params.top_p,
        min_p=params.min_p,
        uniform=Generator(Philox(key=params.seed & _SEED_MASK, counter=position)).random(),
    )


def sample_tokens(
    logits: torch.Tensor, rows: SequenceOf[int], rules: SequenceOf[SamplingMetadata]
) -> list[int]:
    """Draw row by row in torch: a `Draw`."""
    return [_draw(logits[row], rule) for row, rule in zip(rows, rules, strict=True)]


def _draw(logits: torch.Tensor, rules: SamplingMetadata) -> int:
    # Weights are relative to the likeliest token, whose weight is 1, so none overflows.
    weights = logits.sub(logits.max()).div_(rules.temperature).exp_()
    if rules.top_k and rules.top_k < len(weights):
        weights = _keep_likeliest(weights, rules.top_k, weights.topk(rules.top_k).values[-1])
    if rules.top_p < 1.0:
        weights = _keep_nucleus(weights, rules.top_p)
    if rules.min_p:
        weights = weights.masked_fill(weights < rules.min_p, 0.0)
    cumulated = weights.double().cumsum(dim=-1)
    return int(torch.searchsorted(cumulated, cumulated[-1] * rules.uniform, right=True))


def _keep_nucleus(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """Set to 0 all but the smallest set of likeliest tokens that has `top_p` of the sum."""
    total = weights.double().sum()
    # Tokens below this have less than 1 - top_p together, so they are cut off without sorting.
    tail = (1.0 - top_p) / len(weights) * total
    likely = weights[weights >= tail].sort(descending=True).values
    before = likely.double().cumsum(dim=-1) - likely
    num_kept = (before < top_p * total).sum()
    return _keep_likeliest(weights, num_kept, likely[num_kept - 1])


def _keep_likeliest(
    weights: torch.Tensor, num_kept: int | torch.Tensor, least: torch.Tensor
) -> torch.Tensor:
    """Set to 0 all but the `num_kept` largest weights, the smallest of which is `least`.

    It does not synchronize with a GPU.
    """
    is_above, is_equal = weights > least, weights == least
    num_equal_kept = num_kept - is_above.sum()
    is_kept = is_above | (is_equal & (is_equal.cumsum(dim=-1) <= num_equal_kept))
    return weights.masked_fill(~is_kept, 0.0)
