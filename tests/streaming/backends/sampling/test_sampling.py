"""Tokens are the inverse of the distribution function, in torch and in the kernel."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming import SamplingParams
from streaming.backends.native.sampling import native_sample_tokens
from streaming.backends.sampling.sampling import (
    SamplingMetadata,
    TokenSampler,
    sample_tokens,
    sampling_metadata,
)
from tests.streaming.backends.attentions import kernels
from tests.support import property_test

NAMES = ["torch", "native"]
ALL = SamplingMetadata(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, uniform=0.5)


def sampler_named(name: str) -> TokenSampler:
    return sample_tokens if name == "torch" else partial(native_sample_tokens, kernels())


def sample_one(name: str, logits: list[float] | torch.Tensor, **rules: Any) -> int:
    row = torch.as_tensor(logits, dtype=torch.float32)[None]
    made = {
        field: rules.get(field, getattr(ALL, field))
        for field in ("temperature", "top_k", "top_p", "min_p", "uniform")
    }
    [token_id] = sampler_named(name)(row, [0], [SamplingMetadata(**made)])
    return token_id


def distribution_functions(logits: torch.Tensor, rules: SamplingMetadata) -> tuple[Any, Any]:
    """Return the function before and after each token, (vocab_size,), in double precision."""
    scaled = logits.double().numpy() / rules.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-scaled, kind="stable")
    if rules.top_k:
        weights[order[rules.top_k :]] = 0.0
    if rules.top_p < 1.0:
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= rules.top_p * weights.sum()]] = 0.0
    weights[weights < rules.min_p] = 0.0
    after = np.cumsum(weights) / weights.sum()
    return after - weights / weights.sum(), after


RULES = st.builds(
    SamplingMetadata,
    temperature=st.sampled_from([1e-4, 0.2, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 3000]),
    top_p=st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-6, 0.05, 1.0]),
    uniform=st.floats(0.0, 1.0, exclude_max=True),
)


@pytest.mark.parametrize("name", NAMES)
@property_test
@given(
    rules=RULES,
    vocab_size=st.sampled_from([1, 2, 15, 16, 17, 1000, 1024, 1025, 2500]),
    scale=st.sampled_from([0.0, 0.5, 4.0]),
    seed=st.integers(0, 2**20),
)
def test_the_uniform_number_is_in_the_share_of_the_token(
    name: str, rules: SamplingMetadata, vocab_size: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(1, vocab_size, generator=generator)
    [token_id] = sampler_named(name)(logits, [0], [rules])
    before, after = distribution_functions(logits[0], rules)
    # Where a cut is within rounding errors, one token may be kept or not.
    noise = 1e-4 + (2.0 / vocab_size if 0.0 < rules.top_p < 1.0 else 0.0)
    assert before[token_id] - noise <= rules.uniform <= after[token_id] + noise


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.999999])
def test_of_equally_likely_tokens_lower_ids_are_kept(name: str, uniform: float) -> None:
    logits = [0.0, 2.0, 2.0, -inf, 2.0, 1.0, 2.0]
    assert sample_one(name, logits, top_k=1, uniform=uniform) == 1
    assert sample_one(name, logits, top_p=1e-9, uniform=uniform) == 1
    assert sample_one(name, logits, top_k=2, uniform=uniform) in (1, 2)
    assert sample_one(name, logits, top_k=2, uniform=0.999999) == 2
    assert sample_one(name, logits, top_k=3, top_p=0.5, uniform=0.999999) == 2
    assert sample_one(name, logits, min_p=1.0, uniform=0.999999) == 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_ends_of_the_range_give_tokens_with_a_finite_logit(name: str, uniform: float) -> None:
    logits = torch.full((3000,), -inf)
    logits[[700, 2100]] = torch.tensor([1.0, 1.5])
    assert sample_one(name, logits, uniform=uniform) == (700 if uniform == 0.0 else 2100)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "logits", [[3e38, -3e38, 0.0], [-3e38, -inf, -3e38], [1e-40, 0.0, -1e-40], [5.0]]
)
@pytest.mark.parametrize("temperature", [1e-4, 1.0, 100.0])
def test_extreme_logits_give_a_token(name: str, logits: list[float], temperature: float) -> None:
    token_id = sample_one(name, logits, temperature=temperature, top_p=0.9, uniform=0.7)
    assert 0 <= token_id < len(logits)
    assert logits[token_id] > -inf


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_row_gets_the_same_token_as_alone(name: str, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    logits = 3.0 * torch.randn(9, 1500, generator=torch.Generator().manual_seed(5))
    rows = [7, 0, 3, 8]
    rules = [
        ALL,
        SamplingMetadata(0.5, 20, 1.0, 0.0, 0.2),
        SamplingMetadata(1.0, 0, 0.9, 0.0, 0.9),
        SamplingMetadata(2.0, 50, 0.95, 0.1, 0.01),
    ]
    sampler = sampler_named(name)
    together = sampler(logits, rows, rules)
    alone = [
        sampler(logits[row : row + 1], [0], [rule])[0]
        for row, rule in zip(rows, rules, strict=True)
    ]
    assert together == alone
    assert sampler(logits.t().contiguous().t(), rows, rules) == together


def test_seed_and_position_determine_the_uniform_number() -> None:
    params = [SamplingParams(seed=seed, temperature=0.0, top_k=3) for seed in (1, 2, -1)]
    rules = sampling_metadata(params[0], 5)
    assert (rules.top_k, rules.top_p, rules.min_p) == (3, 1.0, 0.0)
    assert rules.temperature > 0.0
    assert sampling_metadata(params[0], 5) == rules
    numbers = {sampling_metadata(some, position).uniform for some in params for position in (5, 6)}
    assert len(numbers) == 6
    assert all(0.0 <= number < 1.0 for number in numbers)


@pytest.mark.parametrize("name", NAMES)
def test_a_top_k_too_large_for_a_tensor_keeps_all_tokens(name: str) -> None:
    logits = torch.zeros(1, 50)
    for position in range(5):
        rules = [
            sampling_metadata(SamplingParams(seed=3, top_k=top_k), position)
            for top_k in (0, 10**400)
        ]
        [expected, token_id] = sampler_named(name)(logits.expand(2, -1), [0, 1], rules)
        assert token_id == expected
