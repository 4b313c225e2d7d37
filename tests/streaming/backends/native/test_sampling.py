"""The sampling kernel returns the tokens of `sample_tokens`; the rules have tests of their own."""

from __future__ import annotations

from math import inf

import pytest
import torch

from streaming.backends.native.sampling import native_sample_tokens
from streaming.backends.sampling.sampling import SamplingMetadata, sample_tokens
from tests.streaming.backends.attentions import kernels

ALL = SamplingMetadata(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, uniform=0.5)
GROUP = 1024
"""Tokens in a group of `sampling.cpp`."""


def assert_same_tokens(logits: torch.Tensor, rules: list[SamplingMetadata]) -> list[int]:
    """Sample a row of logits by each of some rules, with the kernel and with torch."""
    rows = [0] * len(rules)
    token_ids = native_sample_tokens(kernels(), logits[None], rows, rules)
    assert token_ids == sample_tokens(logits[None], rows, rules)
    return token_ids


@pytest.mark.parametrize("vocab_size", [1, 1000, GROUP, GROUP + 1, 5000])
@pytest.mark.parametrize("scale", [0.01, 3.0], ids=["one bucket", "many buckets"])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 40, 1.0, 0.0),
        (1.0, 0, 0.9, 0.0),
        (1.3, 0, 1.0, 0.05),
        (0.9, 700, 0.95, 0.001),
    ],
    ids=["no rule", "top-k", "top-p", "min-p", "all rules"],
)
def test_the_kernel_samples_as_torch_does(
    vocab_size: int, scale: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = scale * torch.randn(vocab_size, generator=generator)
    numbers = torch.rand(20, generator=generator, dtype=torch.float64).tolist()
    rules = [SamplingMetadata(temperature, top_k, top_p, min_p, number) for number in numbers]
    token_ids = assert_same_tokens(logits, rules)
    assert vocab_size == 1 or len(set(token_ids)) > 1


def test_of_equal_tokens_in_several_groups_the_lowest_ids_are_kept() -> None:
    logits = torch.zeros(3 * GROUP)
    rules = [SamplingMetadata(1.0, top_k, 1.0, 0.0, 1.0 - 2**-53) for top_k in (GROUP, 1500)]
    assert assert_same_tokens(logits, rules) == [GROUP - 1, 1499]


def test_tokens_without_a_finite_logit_are_never_sampled() -> None:
    logits = torch.full((2 * GROUP,), -inf)
    logits[[3, GROUP + 7]] = 0.0
    rules = [SamplingMetadata(1.0, 0, 1.0, 0.0, number) for number in (0.0, 0.49, 0.51, 0.99)]
    assert assert_same_tokens(logits, rules) == [3, 3, GROUP + 7, GROUP + 7]


def test_each_row_index_selects_its_own_logits_and_rules() -> None:
    logits = torch.full((4, 50), -inf)
    logits[range(4), [9, 8, 7, 6]] = 0.0
    assert native_sample_tokens(kernels(), logits, [3, 0, 0, 2], [ALL] * 4) == [6, 9, 9, 7]


@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(1, 9).double(),
        torch.zeros(1, 9).bfloat16(),
        torch.zeros(9),
        torch.zeros(1, 9, device="meta"),
    ],
    ids=["double", "bfloat16", "one row", "another device"],
)
def test_logits_of_another_kind_are_rejected(logits: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="rows of float32 on the CPU"):
        native_sample_tokens(kernels(), logits, [0], [ALL])
