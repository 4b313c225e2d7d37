"""Choose the next token of every sequence of a batch, each by its own rules.

A row's token depends on its own logits, parameters, seed and position only, never on which other
rows are in the batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf

import torch

from streaming.backend import FailedRow, SampledToken
from streaming.backends.grammar.token_bitmask import token_mask
from streaming.backends.sampling.penalties import Penalties
from streaming.backends.sampling.row_failure import NOT_FINITE, RowFailed, no_token_allowed
from streaming.backends.sampling.sampling import Draw, sample_tokens, sampling_metadata
from streaming.log.generation import Logprob, TokenLogprobs
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence


class Sampler:
    """Chooses tokens, and keeps the penalties of the sequences that have some.

    Args:
        draw: chooses for sequences that are not greedy.
        max_penalized_seqs: most sequences whose penalties are kept from step to step; at least as
            many as a batch has. Those of a preempted sequence may be dropped, and are counted anew.
    """

    def __init__(self, *, draw: Draw = sample_tokens, max_penalized_seqs: int = 64) -> None:
        self._draw = draw
        self._max_penalized_seqs = max_penalized_seqs
        self._penalties: OrderedDict[Sequence, Penalties] = OrderedDict()  # least recent first

    def sample(
        self, logits: torch.Tensor, sequences: SequenceOf[Sequence]
    ) -> list[SampledToken | FailedRow]:
        """Return the next token of each sequence.

        Args:
            logits: (num_seqs, vocab_size), of any float dtype; the model's own. Overwritten.
        """
        ruled = [row for row, sequence in enumerate(sequences) if not _takes_likeliest(sequence)]
        if len(ruled) == len(sequences):
            return self._sample_by_rules(logits, sequences)
        sampled = _sample_likeliest(logits)
        if ruled:
            by_rules = self._sample_by_rules(logits[ruled], [sequences[row] for row in ruled])
            for row, token in zip(ruled, by_rules, strict=True):
                sampled[row] = token
        return sampled

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that ended."""
        self._penalties.pop(sequence, None)

    def _sample_by_rules(
        self, logits: torch.Tensor, sequences: SequenceOf[Sequence]
    ) -> list[SampledToken | FailedRow]:
        # Before anything waits for the logits: a GPU still computes them meanwhile.
        masks, failed = _masks(sequences, logits.shape[-1])
        logits = logits.float()
        is_finite = logits.amax(dim=-1).isfinite().tolist()
        reported = {
            row: logits[row].log_softmax(dim=-1)
            for row, sequence in enumerate(sequences)
            if sequence.params.logprobs is not None
        }
        for row, sequence in enumerate(sequences):
            self._penalize(logits[row], sequence)
            _bias_and_bar(logits[row], sequence)
        for row, mask in masks.items():
            logits[row].masked_fill_(~mask.to(logits.device), -torch.inf)
        best, best_ids = logits.max(dim=-1)
        # A bad row must not be drawn from: it would yield an id that fails the next step.
        for row, (was_finite, likeliest) in enumerate(zip(is_finite, best.tolist(), strict=True)):
            if not was_finite:
                failed[row] = NOT_FINITE
            elif row not in failed and not math.isfinite(likeliest):
                failed[row] = no_token_allowed(sequences[row], likeliest)
        token_ids = best_ids.tolist()
        drawn = {
            row: sampling_metadata(sequence.params, len(sequence.output_ids))
            for row, sequence in enumerate(sequences)
            if row not in failed and not sequence.params.is_greedy
        }
        if drawn:
            for row, token_id in zip(
                drawn, self._draw(logits, list(drawn), list(drawn.values())), strict=True
            ):
                token_ids[row] = token_id
        return [
            failed.get(row)
            or SampledToken(token_id, _report(reported.get(row), token_id, sequence.params))
            for row, (token_id, sequence) in enumerate(zip(token_ids, sequences, strict=True))
        ]

    def _penalize(self, logits: torch.Tensor, sequence: Sequence) -> None:
        """Apply the penalties of one row, (vocab_size,), in place."""
        if not Penalties.are_wanted(sequence.params):
            return
        if (penalties := self._penalties.get(sequence)) is None:
            penalties = Penalties(sequence, device=logits.device)
            self._penalties[sequence] = penalties
        self._penalties.move_to_end(sequence)
        if len(self._penalties) > self._max_penalized_seqs:
            self._penalties.popitem(last=False)
        penalties.apply(logits)


def _takes_likeliest(sequence: Sequence) -> bool:
    """Whether the next token is the model's own best one, and nothing else is wanted."""
    params = sequence.params
    return (
        params.is_greedy
        and params.logprobs is None
        and not params.logit_bias
        and not Penalties.are_wanted(params)
        and sequence.matcher is None
        and not sequence.must_not_end
    )


def _sample_likeliest(logits: torch.Tensor) -> list[SampledToken | FailedRow]:
    # The best is NaN where any is. Single tokens may be masked with -inf.
    best, best_ids = logits.max(dim=-1)
    return [
        SampledToken(token_id) if is_finite else NOT_FINITE
        for token_id, is_finite in zip(best_ids.tolist(), best.isfinite().tolist(), strict=True)
    ]


def _masks(
    sequences: SequenceOf[Sequence], vocab_size: int
) -> tuple[dict[int, torch.Tensor], dict[int, FailedRow]]:
    """Return the masks of the rows that have a grammar, and the rows whose grammar broke down."""
    masks: dict[int, torch.Tensor] = {}
    failed: dict[int, FailedRow] = {}
    for row, sequence in enumerate(sequences):
        try:
            mask = token_mask(sequence, vocab_size)
        except RowFailed as failure:
            failed[row] = failure.row
        else:
            if mask is not None:
                masks[row] = mask
    return masks, failed


def _bias_and_bar(logits: torch.Tensor, sequence: Sequence) -> None:
    """Apply the bias and the bars of one row, (vocab_size,), in place."""
    params = sequence.params
    if params.logit_bias:
        ids = logits.new_tensor(list(params.logit_bias), dtype=torch.long)
        logits[ids] += logits.new_tensor(list(params.logit_bias.values()))
    # With a grammar, its mask bars them where it can.
    if sequence.matcher is None and sequence.must_not_end and sequence.banned_token_ids:
        logits[logits.new_tensor(list(sequence.banned_token_ids), dtype=torch.long)] = -torch.inf


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
