from __future__ import annotations

from math import inf, log, nan
from typing import Any

import pytest
import torch

from streaming import SamplingParams
from streaming.backends.sampling.logits_processors import RawDistribution, RequestRules
from streaming.backends.sampling.row_failure import RowFailed
from streaming.backends.sampling.sampler import Sampler
from streaming.sequence import Sequence
from tests.support import chunk_of, make_sequence

CPU = torch.device("cpu")


def rules_of(sequence: Sequence) -> RequestRules:
    """Return the processor of a sequence, which reads its current state at each call."""
    return RequestRules(lambda: chunk_of(sequence), CPU)


def sequence_with(**params: object) -> Sequence:
    """Return a sequence whose prompt is tokens 0 and 1."""
    return make_sequence(prompt="\x00\x01", params=SamplingParams(max_tokens=9, seed=0, **params))  # type: ignore[arg-type]


def test_raw_distribution_is_in_natural_logarithms() -> None:
    raw = RawDistribution(2, vocab_size=3)
    scores = torch.tensor([[log(1.0), log(2.0), log(5.0)]])
    assert torch.equal(raw(torch.tensor([[0]]), scores), scores)
    logprobs = raw.logprobs_of(0)
    assert logprobs is not None
    assert logprobs.chosen.logprob == pytest.approx(log(1 / 8))
    assert [top.token_id for top in logprobs.top] == [2, 1]
    assert [top.logprob for top in logprobs.top] == pytest.approx([log(5 / 8), log(2 / 8)])


def test_raw_distribution_reports_at_most_the_vocabulary() -> None:
    raw = RawDistribution(20, vocab_size=3)
    raw(torch.tensor([[0]]), torch.zeros(1, 3))
    logprobs = raw.logprobs_of(1)
    assert logprobs is not None
    assert len(logprobs.top) == 3


@pytest.mark.parametrize("logits", [[nan, 1.0], [1.0, nan], [inf, 1.0], [-inf, -inf]])
def test_logits_that_are_not_finite_are_rejected(logits: list[float]) -> None:
    with pytest.raises(RowFailed, match="not finite"):
        RawDistribution(None, vocab_size=2)(torch.tensor([[0]]), torch.tensor([logits]))


def test_single_tokens_of_minus_infinity_are_accepted() -> None:
    raw = RawDistribution(None, vocab_size=2)
    raw(torch.tensor([[0]]), torch.tensor([[-inf, 1.0]]))
    assert raw.logprobs_of(1) is None


def test_rows_that_pad_the_head_are_cut_off() -> None:
    """They may hold any value."""
    raw = RawDistribution(3, vocab_size=2)
    scores = raw(torch.tensor([[0]]), torch.tensor([[0.0, 0.0, 99.0, nan]]))
    assert scores.tolist() == [[0.0, 0.0]]
    logprobs = raw.logprobs_of(1)
    assert logprobs is not None
    assert [top.token_id for top in logprobs.top] == [0, 1]
    assert [top.logprob for top in logprobs.top] == pytest.approx([log(0.5)] * 2)


def test_penalties_do_not_change_the_models_own_scores() -> None:
    rules = rules_of(sequence_with(repetition_penalty=2.0))
    scores = torch.tensor([[4.0, -4.0, 4.0, -4.0]])
    assert rules(torch.tensor([[0, 1]]), scores).tolist() == [[2, -8, 4, -4]]
    assert scores.tolist() == [[4, -4, 4, -4]]


def test_logit_bias_is_added() -> None:
    rules = rules_of(sequence_with(logit_bias={1: 2.5, 2: -1.0}))
    assert rules(torch.tensor([[0]]), torch.ones(1, 3)).tolist() == [[1.0, 3.5, 0.0]]


def test_end_tokens_are_banned_until_min_tokens() -> None:
    sequence = sequence_with(min_tokens=1, stop_token_ids=frozenset({2}))
    rules = rules_of(sequence)
    scores = torch.zeros(1, 257)
    banned = rules(torch.tensor([[0]]), scores)[0]
    assert (banned == -inf).nonzero().flatten().tolist() == [2, 256]
    sequence.append(5, at=0.0)
    assert torch.equal(rules(torch.tensor([[0, 5]]), scores), scores)


@pytest.mark.parametrize(
    ("params", "are_needed"),
    [
        ({"temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "logprobs": 2}, False),
        ({"frequency_penalty": 0.1}, True),
        ({"logit_bias": {1: 1.0}}, True),
        ({"min_tokens": 1}, True),
    ],
)
def test_a_request_without_rules_needs_no_processor(params: dict[str, Any], are_needed: bool):
    assert RequestRules.are_needed(chunk_of(sequence_with(**params))) is are_needed


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_those_of_batches_to_the_bit(seed: int) -> None:
    params = {"repetition_penalty": 1.3, "presence_penalty": 0.7, "frequency_penalty": -0.2}
    sequence = sequence_with(**params, logit_bias={7: 1.5}, min_tokens=5, logprobs=0)
    rules = rules_of(sequence)
    for token_id in (9, 7, 9):
        logits = 5 * torch.randn(1, 257, generator=torch.Generator().manual_seed(seed))
        scores = rules(torch.tensor([[0]]), logits)
        Sampler().sample(logits, [chunk_of(sequence)])  # overwrites them
        assert torch.equal(scores, logits)
        sequence.append(token_id, at=0.0)
