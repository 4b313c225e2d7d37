"""Choose the next token of every sequence of a batch, each by its own rules.

A row's token depends on its own logits, parameters, seed and position only, never on which other
rows are in the batch. Randomness is counter-based, one uniform number for each (seed, position), so
a sequence that is preempted and computed again draws the same numbers again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as SequenceOf

import torch
from numpy.random import Generator, Philox

from streaming.backend import FailedRow, SampledToken
from streaming.backends.token_mask import token_mask
from streaming.generation import Logprob, TokenLogprobs
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence

_MIN_TEMPERATURE = 1e-4
"""Lower ones choose the same tokens and overflow float32."""
_MAX_LOGIT = 1e30
"""Logits above it would become infinite when divided by a small temperature."""
_NUM_CANDIDATES = 1024
"""Tokens that are sorted for top-p and min-p; a flatter distribution is sorted whole."""
_SEED_MASK = 2**64 - 1


def sample(logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[SampledToken | FailedRow]:
    """Return the next token of each sequence.

    Args:
        logits: (num_seqs, vocab_size), of any float dtype; the model's own. Overwritten.
    """
    # Before anything waits for the logits: a GPU still computes them meanwhile.
    masks = {
        row: mask
        for row, sequence in enumerate(sequences)
        if (mask := token_mask(sequence, logits.shape[-1])) is not None
    }
    logits = logits.float()
    is_finite = logits.amax(dim=-1).isfinite().tolist()
    reported = {
        row: logits[row].log_softmax(dim=-1)
        for row, sequence in enumerate(sequences)
        if sequence.params.logprobs is not None
    }
    for row, sequence in enumerate(sequences):
        _process(logits[row], sequence)
    for row, mask in masks.items():
        logits[row].masked_fill_(~mask.to(logits.device), -torch.inf)
    best, best_ids = logits.max(dim=-1)
    failed = {
        row: FailedRow("the grammar allows no token")
        for row, has_choice in enumerate((best > -torch.inf).tolist())
        if row in masks and not has_choice
    } | {
        row: FailedRow("the model's logits are not finite numbers")
        for row, row_is_finite in enumerate(is_finite)
        if not row_is_finite
    }
    token_ids = best_ids.tolist()
    for row, sequence in enumerate(sequences):
        if row not in failed and not sequence.params.is_greedy:
            token_ids[row] = _draw(logits[row], sequence.params, len(sequence.output_ids))
    return [
        failed.get(row)
        or SampledToken(token_id, _report(reported.get(row), token_id, sequence.params))
        for row, (token_id, sequence) in enumerate(zip(token_ids, sequences, strict=True))
    ]


def _process(logits: torch.Tensor, sequence: Sequence) -> None:
    """Apply penalties, bias and bars to one row, (vocab_size,), in place."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = logits.new_tensor(
            list({*sequence.prompt_ids, *sequence.output_ids}), dtype=torch.long
        )
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sequence.output_ids and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(sequence.output_ids)
        ids = logits.new_tensor(list(counts), dtype=torch.long)
        times = logits.new_tensor(list(counts.values()))
        logits[ids] -= params.presence_penalty + params.frequency_penalty * times
    if params.logit_bias:
        ids = logits.new_tensor(list(params.logit_bias), dtype=torch.long)
        logits[ids] += logits.new_tensor(list(params.logit_bias.values()))
    # With a grammar, its mask bars them where it can.
    if sequence.matcher is None and sequence.must_not_end and sequence.barred_token_ids:
        logits[logits.new_tensor(list(sequence.barred_token_ids), dtype=torch.long)] = -torch.inf


def _draw(logits: torch.Tensor, params: SamplingParams, position: int) -> int:
    """Return a token drawn from one processed row, (vocab_size,).

    Temperature, then top-k, top-p and min-p, each on what the one before left, as transformers
    does; then the inverse of the distribution function at one uniform number.
    """
    assert params.seed is not None
    scaled = logits.clamp(max=_MAX_LOGIT) / max(params.temperature, _MIN_TEMPERATURE)
    uniform = Generator(Philox(key=params.seed & _SEED_MASK, counter=position)).random()
    if not params.top_k and params.top_p == 1.0 and not params.min_p:
        return _invert(scaled.softmax(dim=-1), uniform)
    probabilities, ids = _candidates(scaled, params)
    if params.top_p < 1.0:
        # The token that carries the sum over the bound is kept: at least one always is.
        kept = probabilities.cumsum(dim=-1) - probabilities < params.top_p
        probabilities = _normalize(probabilities * kept)
    if params.min_p:
        probabilities = probabilities * (probabilities >= params.min_p * probabilities[0])
    return int(ids[_invert(_normalize(probabilities), uniform)])


def _candidates(scaled: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the likeliest tokens' probabilities and ids, best first: all that can be drawn."""
    vocab_size = scaled.shape[-1]
    if params.top_k:
        values, ids = scaled.topk(min(params.top_k, vocab_size))
        return values.softmax(dim=-1), ids
    values, ids = scaled.topk(min(_NUM_CANDIDATES, vocab_size))
    probabilities = (values - scaled.logsumexp(dim=-1)).exp()
    has_all = probabilities.sum() >= params.top_p if params.top_p < 1.0 else False
    if not has_all:
        has_all = bool(params.min_p) and probabilities[-1] < params.min_p * probabilities[0]
    if not has_all:
        values, ids = scaled.sort(descending=True)
        probabilities = values.softmax(dim=-1)
    return probabilities, ids


def _normalize(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities / probabilities.sum()


def _invert(probabilities: torch.Tensor, uniform: float) -> int:
    """Return the first index whose cumulated probability passes `uniform`."""
    cumulated = probabilities.double().cumsum(dim=-1)
    index = torch.searchsorted(cumulated, cumulated[-1] * uniform, right=True)
    return int(index)


def _report(
    logprobs: torch.Tensor | None, token_id: int, params: SamplingParams
) -> TokenLogprobs | None:
    """Return the chosen token's log probability and the likeliest tokens of one row."""
    if logprobs is None or params.logprobs is None:
        return None
    values, ids = logprobs.topk(min(params.logprobs, logprobs.shape[-1]))
    return TokenLogprobs(
        Logprob(token_id, logprobs[token_id].item()),
        tuple(map(Logprob, ids.tolist(), values.tolist())),
    )
