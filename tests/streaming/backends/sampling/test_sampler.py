"""Compares every rule of sampling with a naive computation in numpy, and rows with rows alone."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming import SamplingParams
from streaming.backend import FailedRow, SampledToken
from streaming.backends.sampling.sampler import Sampler
from streaming.errors import NoTokenAllowed
from streaming.sequence import Sequence
from tests.support import chunk_of, make_sequence, property_test

VOCAB_SIZE = 300


def sequence_with(
    output_ids: Iterable[int] = (), *, prompt: str = "ask", **params: Any
) -> Sequence:
    params = {"seed": 0, "max_tokens": 1000} | params
    sequence = make_sequence(prompt=prompt, params=SamplingParams(**params))
    for token_id in output_ids:
        take(sequence, token_id)
    return sequence


def take(sequence: Sequence, token_id: int) -> None:
    """Append a token to the output."""
    sequence.output_ids.append(token_id)
    sequence.token_ids.append(token_id)


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[SampledToken | FailedRow]:
    """Sample with a new sampler."""
    return Sampler().sample(logits, list(map(chunk_of, sequences)))


def random_logits(
    num_rows: int = 1, *, vocab_size: int = VOCAB_SIZE, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(num_rows, vocab_size, generator=generator)


def sample_one(logits: torch.Tensor, sequence: Sequence) -> int:
    """Sample one row alone, and keep `logits` unchanged."""
    (row,) = sample(logits.reshape(1, -1).clone(), [sequence])
    assert isinstance(row, SampledToken)
    return row.token_id


def sample_seeds(logits: torch.Tensor, num_seeds: int, **params: Any) -> list[int]:
    """Sample a token for each of `num_seeds` seeds, all in one batch."""
    sequences = [sequence_with(seed=seed, **params) for seed in range(num_seeds)]
    rows = sample(logits.reshape(1, -1).repeat(num_seeds, 1), sequences)
    return [row.token_id for row in rows if isinstance(row, SampledToken)]


def allowed(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> np.ndarray[Any, Any]:
    """Return the distribution, (vocab_size,), by the definitions and in double precision."""
    scaled = logits.double().numpy().reshape(-1) / temperature
    probabilities = np.exp(scaled - scaled.max())
    order = np.argsort(-scaled, kind="stable")
    if top_k:
        probabilities[order[top_k:]] = 0.0
    probabilities /= probabilities.sum()
    if top_p < 1.0:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= top_p]] = 0.0
    if min_p:
        probabilities[probabilities < min_p * probabilities.max()] = 0.0
    result: np.ndarray[Any, Any] = probabilities / probabilities.sum()
    return result


RULES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"top_k": 40, "top_p": 0.8},
    {"top_p": 0.9, "min_p": 0.1},
    {"temperature": 1.7, "top_k": 50, "top_p": 0.95, "min_p": 0.05},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.slow
def test_tokens_follow_the_distribution(rules: dict[str, Any]) -> None:
    """A chi-square test with fixed seeds, so a correct sampler always passes."""
    num_seeds = 3000
    logits = random_logits(vocab_size=60)
    expected = allowed(logits, **rules) * num_seeds
    counts = np.bincount(sample_seeds(logits, num_seeds, **rules), minlength=60)
    assert counts[expected == 0.0].sum() == 0, "a token that is cut off is never sampled"
    # The test requires that cells with an expected count below five are merged.
    is_large = expected >= 5.0
    observed = [*counts[is_large], counts[~is_large].sum()]
    merged = [*expected[is_large], expected[~is_large].sum()]
    if merged[-1] < 5.0:
        observed[-2:], merged[-2:] = [sum(observed[-2:])], [sum(merged[-2:])]
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, merged, strict=True) if e)
    freedom = len(merged) - 1
    # The 99.9% quantile, by Wilson and Hilferty's cube.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert chi_square < limit


@property_test
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 7, 1023, 1024, 1025, 3000]),
    st.sampled_from([0.2, 1.0, 2.0]),
    st.sampled_from([0, 1, 3, 5000]),
    st.sampled_from([1e-9, 0.3, 0.95, 0.999999, 1.0]),
    st.sampled_from([0.0, 1e-5, 0.1, 1.0]),
)
def test_only_tokens_that_the_rules_keep_are_sampled(
    seed: int, vocab_size: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(vocab_size=vocab_size, seed=seed)
    rules: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    # Allow for rounding at the bounds, where float32 and float64 may differ.
    widest = allowed(logits, **{**rules, "top_p": min(1.0, top_p + 1e-5), "min_p": min_p * 0.9999})
    for token_id in sample_seeds(logits, 5, **rules):
        assert widest[token_id] > 0.0


@pytest.mark.parametrize("rules", [{"top_p": 0.9}, {"min_p": 0.5}, {"top_p": 0.9, "min_p": 0.5}])
def test_no_token_of_a_flat_distribution_is_lost(rules: dict[str, float]) -> None:
    """Many tokens of equal weight share the mass, and each of them can be sampled."""
    logits = torch.zeros(4000)
    logits[:10] = -30.0
    seen = set(sample_seeds(logits, 400, **rules))
    assert seen <= set(range(10, 4000))
    assert len(seen) > 300


def test_min_p_keeps_more_than_a_thousand_likely_tokens() -> None:
    logits = torch.cat([torch.zeros(1024), torch.full((1000,), -0.5), torch.full((500,), -9.0)])
    token_ids = sample_seeds(logits, 400, min_p=0.5)
    assert max(token_ids) >= 1024
    assert max(token_ids) < 2024


@pytest.mark.parametrize("vocab_size", [2, 2000])
def test_equal_logits_are_equally_likely_and_top_k_keeps_k_of_them(vocab_size: int) -> None:
    logits = torch.ones(vocab_size)
    assert len(set(sample_seeds(logits, 200))) > 1
    assert len(set(sample_seeds(logits, 200, top_k=2))) == 2
    assert len(set(sample_seeds(logits, 50, top_p=1e-6))) == 1
    assert set(sample_seeds(logits, 200, min_p=1.0, top_k=2)) == set(
        sample_seeds(logits, 200, top_k=2)
    )


def test_a_top_k_beyond_the_vocabulary_cuts_nothing_off() -> None:
    logits = random_logits()
    for top_k in (10**12, 10**400):
        assert sample_seeds(logits, 50, top_k=top_k) == sample_seeds(logits, 50, top_k=VOCAB_SIZE)


@pytest.mark.parametrize(
    "rules",
    [
        {"top_k": 1},
        {"top_p": 1e-9},
        {"min_p": 1.0},
        {"temperature": 1e-30},
        {"temperature": 0.0},
        {"temperature": 1e-30, "top_p": 0.5, "min_p": 0.5},
    ],
    ids=str,
)
def test_narrowest_sampling_is_greedy(rules: dict[str, Any]) -> None:
    logits = random_logits()
    assert set(sample_seeds(logits, 5, **rules)) == {int(logits.argmax())}


# Penalties, bias and bans.


@property_test
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 40), max_size=30),
    st.floats(-2.0, 2.0),
    st.floats(-2.0, 2.0),
    st.floats(0.1, 10.0),
    st.dictionaries(st.integers(0, 40), st.floats(-100.0, 100.0), max_size=5),
    st.integers(0, 3),
)
def test_rules_change_logits_by_their_formulas(
    seed: int,
    output_ids: list[int],
    presence: float,
    frequency: float,
    repetition: float,
    bias: dict[int, float],
    min_tokens: int,
) -> None:
    sequence = sequence_with(
        output_ids,
        prompt="\x01\x02\x29",
        temperature=0.0,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=bias,
        min_tokens=min_tokens,
        stop_token_ids=frozenset({3, 4}),
    )
    logits = random_logits(seed=seed)
    expected = logits[0].double().numpy().copy()
    for token_id in {1, 2, 41, *output_ids}:
        value = expected[token_id]
        expected[token_id] = value / repetition if value > 0 else value * repetition
    for token_id in set(output_ids):
        expected[token_id] -= presence + frequency * output_ids.count(token_id)
    for token_id, value in bias.items():
        expected[token_id] += value
    if len(output_ids) < min_tokens:
        expected[[3, 4, 256]] = -inf
    changed = logits.clone()
    (row,) = sample(changed, [sequence])
    np.testing.assert_allclose(changed[0].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(row, SampledToken)
    assert expected[row.token_id] == pytest.approx(expected.max(), abs=1e-3)


def test_an_end_token_is_banned_until_min_tokens() -> None:
    logits = torch.zeros(VOCAB_SIZE)
    logits[256] = 20.0
    banned = [sample_one(logits, sequence_with(seed=seed, min_tokens=1)) for seed in range(50)]
    assert 256 not in banned
    assert sample_one(logits, sequence_with([5], min_tokens=1)) == 256


@pytest.mark.parametrize("params", [{"repetition_penalty": 0.01}, {"logit_bias": {1: 100.0}}])
def test_extreme_values_still_give_a_token(params: dict[str, Any]) -> None:
    logits = torch.tensor([3e38, 1.0, -3e38] + [0.0] * 300)
    for temperature in (0.0, 1e-30, 2.0):
        token_id = sample_one(logits, sequence_with(temperature=temperature, top_p=0.9, **params))
        assert 0 <= token_id < 303


def test_a_bias_against_every_token_changes_nothing() -> None:
    """The bias is added to the logits, so every token stays possible."""
    logits = random_logits()
    against_all = dict.fromkeys(range(VOCAB_SIZE), -100.0)
    assert sample_seeds(logits, 20, logit_bias=against_all, temperature=0.0) == sample_seeds(
        logits, 20, temperature=0.0
    )
    assert len(sample_seeds(logits, 20, logit_bias=against_all)) == 20


# Each row is independent.


def mixed_batch() -> list[Sequence]:
    rules = [*RULES, {"temperature": 0.0}, {"logprobs": 5}, {"logit_bias": {7: 3.0}}]
    rules += [{"repetition_penalty": 1.5}, {"presence_penalty": 1.0, "top_p": 0.5}]
    return [sequence_with(range(row), seed=row, **params) for row, params in enumerate(rules)]


@pytest.mark.pain(14)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_is_the_same_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    """Bit for bit, the reported log probabilities included."""
    sequences = mixed_batch()
    logits = random_logits(len(sequences), vocab_size=1500).to(dtype)
    together = sample(logits.clone(), sequences)
    alone = [
        sample(logits[row : row + 1].clone(), [sequence])[0]
        for row, sequence in enumerate(sequences)
    ]
    assert together == alone
    order = list(reversed(range(len(sequences))))
    reordered = sample(logits[order].clone(), [sequences[row] for row in order])
    assert list(reversed(reordered)) == alone


def test_a_token_depends_on_seed_and_position_only() -> None:
    logits = torch.zeros(VOCAB_SIZE)
    tokens = {
        (seed, position): sample_one(logits, sequence_with([9] * position, seed=seed))
        for seed in (0, 1, -1, 2**63 - 1, -(2**63))
        for position in range(20)
    }
    again = {
        key: sample_one(logits, sequence_with([9] * key[1], seed=key[0]))
        for key in reversed(tokens)
    }
    assert tokens == again
    # 100 samples from 300 tokens: if two seeds gave the same numbers, a fifth would be missing.
    assert len(set(tokens.values())) > 70


def test_consecutive_seeds_and_positions_are_independent() -> None:
    logits = torch.zeros(2)
    for axis in ("seed", "position"):
        ones = sum(
            sample_one(logits, sequence_with([0] * (n if axis == "position" else 0), seed=n))
            for n in range(1000)
        )
        assert 440 < ones < 560  # within 3.8 standard deviations of a fair coin


@pytest.mark.parametrize("bad", [[nan, 1.0], [1.0, nan], [inf, 1.0], [-inf, -inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad: list[float], temperature: float) -> None:
    logits = random_logits(3)
    logits[1, :2] = torch.tensor(bad)
    if bad == [-inf, -inf]:
        logits[1] = -inf
    sequences = [
        sequence_with(temperature=temperature, logprobs=2, top_p=top_p) for top_p in (0.9, 0.9, 1.0)
    ]
    fine = [sample_one(logits[row], sequences[row]) for row in (0, 2)]
    first, failed, last = sample(logits, sequences)
    assert failed == FailedRow("the model's logits are not finite")
    assert [row.token_id for row in (first, last) if isinstance(row, SampledToken)] == fine


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_rules_allow_no_token_fails_alone(temperature: float) -> None:
    banned = sequence_with(
        temperature=temperature, min_tokens=1, stop_token_ids=frozenset(range(VOCAB_SIZE))
    )
    failed, fine = sample(random_logits(2), [banned, sequence_with(temperature=temperature)])
    assert failed_param(failed) == "min_tokens"
    assert isinstance(fine, SampledToken)


def failed_param(row: SampledToken | FailedRow) -> str | None:
    """Return the parameter that a failure names."""
    assert isinstance(row, FailedRow)
    assert isinstance(row.error, NoTokenAllowed)
    return row.error.param


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("logit", "penalty"), [(3e38, 0.01), (-3e38, 10.0)])
def test_a_row_that_its_penalty_makes_infinite_fails_alone(
    logit: float, penalty: float, temperature: float
) -> None:
    """The failure names the request's parameter, not the model."""
    logits = random_logits(2)
    logits[0] = logit
    params: dict[str, Any] = {"repetition_penalty": penalty, "temperature": temperature}
    failed, fine = sample(logits, [sequence_with(range(VOCAB_SIZE), **params), sequence_with()])
    assert failed_param(failed) == "repetition_penalty"
    assert isinstance(fine, SampledToken)


def test_single_tokens_of_minus_infinity_are_never_sampled() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 5:] = -inf
    assert max(sample_seeds(logits[0], 100)) < 5


def test_logprobs_are_none_without_the_parameter() -> None:
    (row,) = sample(random_logits(), [sequence_with()])
    assert isinstance(row, SampledToken)
    assert row.logprobs is None


@pytest.mark.parametrize("num_top", [0, 3, 20])
def test_logprobs_are_of_the_models_own_distribution(num_top: int) -> None:
    """Although the rules change the row in place before a token is sampled."""
    logits = random_logits(vocab_size=12)
    expected = torch.log_softmax(logits[0].double(), dim=-1)
    sequence = sequence_with(
        [3],
        prompt="\x01",
        logprobs=num_top,
        temperature=0.5,
        logit_bias={7: 100.0},
        repetition_penalty=3.0,
    )
    (row,) = sample(logits, [sequence])
    assert isinstance(row, SampledToken)
    assert row.logprobs is not None
    assert row.token_id == row.logprobs.chosen.token_id == 7
    assert row.logprobs.chosen.logprob == pytest.approx(float(expected[7]), abs=1e-5)
    best = expected.topk(min(num_top, 12))
    assert [top.token_id for top in row.logprobs.top] == best.indices.tolist()
    assert [top.logprob for top in row.logprobs.top] == pytest.approx(
        best.values.tolist(), abs=1e-5
    )
