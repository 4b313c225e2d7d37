"""Choose the next token of every sequence of a batch, each by its own rules.

A row's token depends on its own logits, parameters, seed and position only, never on which other
rows are in the batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as SequenceOf

import torch

from streaming.backend import FailedRow, SampledToken
from streaming.backends.draw import Draw, draw_tokens, rules_for
from streaming.backends.token_mask import token_mask
from streaming.generation import Logprob, TokenLogprobs
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence

_NOT_FINITE = "the model's logits are not finite numbers"
_NO_TOKEN = "its rules allow no token"
_NO_TOKEN_BY_GRAMMAR = "the grammar allows no token"


def sample(
    logits: torch.Tensor, sequences: SequenceOf[Sequence], *, draw: Draw = draw_tokens
) -> list[SampledToken | FailedRow]:
    """Return the next token of each sequence.

    Args:
        logits: (num_seqs, vocab_size), of any float dtype; the model's own. Overwritten.
        draw: chooses for those that are not greedy.
    """
    ruled = [row for row, sequence in enumerate(sequences) if not _takes_the_likeliest(sequence)]
    if len(ruled) == len(sequences):
        return _sample_by_rules(logits, sequences, draw)
    sampled = _sample_likeliest(logits)
    if ruled:
        by_rules = _sample_by_rules(logits[ruled], [sequences[row] for row in ruled], draw)
        for row, token in zip(ruled, by_rules, strict=True):
            sampled[row] = token
    return sampled


def _takes_the_likeliest(sequence: Sequence) -> bool:
    """Whether the next token is the model's own best one, and nothing else is wanted."""
    params = sequence.params
    return (
        params.is_greedy
        and params.logprobs is None
        and params.repetition_penalty == 1.0
        and not (params.presence_penalty or params.frequency_penalty or params.logit_bias)
        and sequence.matcher is None
        and not sequence.must_not_end
    )


def _sample_likeliest(logits: torch.Tensor) -> list[SampledToken | FailedRow]:
    # The best is NaN where any is. Single tokens may be masked with -inf.
    best, best_ids = logits.max(dim=-1)
    return [
        SampledToken(token_id) if is_finite else FailedRow(_NOT_FINITE)
        for token_id, is_finite in zip(best_ids.tolist(), best.isfinite().tolist(), strict=True)
    ]


def _sample_by_rules(
    logits: torch.Tensor, sequences: SequenceOf[Sequence], draw: Draw
) -> list[SampledToken | FailedRow]:
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
    # A bad row must not be drawn from: what comes out is no token, and would fail the next step.
    failed: dict[int, FailedRow] = {}
    for row, (was_finite, likeliest) in enumerate(zip(is_finite, best.tolist(), strict=True)):
        if was_finite and likeliest == -math.inf:
            failed[row] = FailedRow(_NO_TOKEN_BY_GRAMMAR if row in masks else _NO_TOKEN)
        elif not was_finite or not math.isfinite(likeliest):
            failed[row] = FailedRow(_NOT_FINITE)
    token_ids = best_ids.tolist()
    drawn = {
        row: rules_for(sequence.params, len(sequence.output_ids))
        for row, sequence in enumerate(sequences)
        if row not in failed and not sequence.params.is_greedy
    }
    if drawn:
        for row, token_id in zip(
            drawn, draw(logits, list(drawn), list(drawn.values())), strict=True
        ):
            token_ids[row] = token_id
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
