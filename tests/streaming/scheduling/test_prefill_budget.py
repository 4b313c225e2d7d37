"""The prefill budget keeps a step at about two and a half times a decode-only step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.scheduling.padding import ceil_to_bucket
from streaming.scheduling.prefill_budget import PrefillBudget
from tests.support import property_test


def measured(
    *, decode_step_s: float, prefill_token_s: float, max_batch_tokens: int = 512
) -> PrefillBudget:
    prefill_budget = PrefillBudget(max_batch_tokens=max_batch_tokens)
    prefill_budget.observe_step(num_decodes=4, num_prefill_tokens=0, duration_s=decode_step_s)
    prefill_budget.observe_step(
        num_decodes=0, num_prefill_tokens=100, duration_s=100 * prefill_token_s
    )
    return prefill_budget


def test_without_decodes_the_budget_is_the_whole_step():
    assert PrefillBudget(max_batch_tokens=512).num_tokens(num_decodes=0) == 512
    prefill_budget = measured(decode_step_s=0.01, prefill_token_s=1.0)
    assert prefill_budget.num_tokens(num_decodes=0) == 512


def test_the_budget_is_small_before_prefill_is_measured():
    prefill_budget = PrefillBudget(max_batch_tokens=512)
    prefill_budget.observe_step(num_decodes=1, num_prefill_tokens=0, duration_s=0.01)
    assert prefill_budget.num_tokens(num_decodes=1) == 8


def test_the_first_step_with_decodes_has_no_prefill():
    prefill_budget = PrefillBudget(max_batch_tokens=512)
    assert prefill_budget.num_tokens(num_decodes=1) == 0
    prefill_budget.observe_step(num_decodes=0, num_prefill_tokens=10, duration_s=0.01)
    assert prefill_budget.num_tokens(num_decodes=1) == 0
    prefill_budget.observe_step(num_decodes=1, num_prefill_tokens=0, duration_s=0.1)
    assert prefill_budget.num_tokens(num_decodes=1) == 143


@pytest.mark.parametrize(
    ("decode_step_s", "prefill_token_s", "budget"),
    [
        (0.1, 0.001, 140),  # 150 tokens and 4 decodes, rounded down to a bucket of 144
        (0.1, 0.003125, 48),  # 48 tokens and 4 decodes are a bucket of 52
        (0.1, 1.0, 8),  # the minimum: every prefill makes progress
        (0.1, 1e-6, 508),  # all the room of the batch
        (0.1, 0.0, 8),  # a clock that stands still measures nothing
    ],
)
def test_a_chunk_takes_one_and_a_half_decode_steps(
    decode_step_s: float, prefill_token_s: float, budget: int
):
    prefill_budget = measured(decode_step_s=decode_step_s, prefill_token_s=prefill_token_s)
    assert prefill_budget.num_tokens(num_decodes=4) == budget


@pytest.mark.parametrize(("num_decodes", "budget"), [(0, 8), (1, 7), (7, 1), (8, 0), (9, 0)])
def test_decodes_take_their_room_first(num_decodes: int, budget: int):
    prefill_budget = measured(decode_step_s=0.1, prefill_token_s=0.001, max_batch_tokens=8)
    assert prefill_budget.num_tokens(num_decodes=num_decodes) == budget


def test_more_decodes_than_measured_are_estimated():
    prefill_budget = measured(decode_step_s=0.1, prefill_token_s=0.001)  # with four decodes
    assert prefill_budget.num_tokens(num_decodes=24) == 168  # 1.5 times 0.12 s
    assert prefill_budget.num_tokens(num_decodes=1) == 143


def test_the_time_of_decodes_is_not_charged_to_prefill():
    prefill_budget = PrefillBudget(max_batch_tokens=512)
    prefill_budget.observe_step(num_decodes=4, num_prefill_tokens=0, duration_s=0.1)
    prefill_budget.observe_step(num_decodes=4, num_prefill_tokens=100, duration_s=0.3)
    assert prefill_budget.num_tokens(num_decodes=4) == 68  # 0.2 s for 100 tokens


def test_a_mixed_step_faster_than_decodes_alone_divides_by_no_zero():
    prefill_budget = PrefillBudget(max_batch_tokens=512)
    prefill_budget.observe_step(num_decodes=4, num_prefill_tokens=0, duration_s=1.0)
    prefill_budget.observe_step(num_decodes=4, num_prefill_tokens=100, duration_s=0.5)
    assert prefill_budget.num_tokens(num_decodes=4) == 508


def test_the_mean_follows_a_change():
    prefill_budget = measured(decode_step_s=0.1, prefill_token_s=0.001)
    for _ in range(100):
        prefill_budget.observe_step(num_decodes=0, num_prefill_tokens=100, duration_s=0.2)
    assert prefill_budget.num_tokens(num_decodes=4) == 68


@property_test
@given(
    st.floats(1e-4, 1.0),
    st.floats(1e-6, 1e-2),
    st.integers(1, 600),
    st.sampled_from([16, 64, 512]),
)
def test_a_step_never_exceeds_its_limits(
    decode_step_s: float, prefill_token_s: float, num_decodes: int, max_batch_tokens: int
):
    prefill_budget = measured(
        decode_step_s=decode_step_s,
        prefill_token_s=prefill_token_s,
        max_batch_tokens=max_batch_tokens,
    )
    budget = prefill_budget.num_tokens(num_decodes=num_decodes)
    assert 0 <= budget <= max(0, max_batch_tokens - num_decodes)
    size = num_decodes + budget
    assert size >= max_batch_tokens or size == ceil_to_bucket(size)
    if budget > 16:
        more_s = max(0, num_decodes - 4) * prefill_token_s
        assert budget * prefill_token_s <= 1.501 * (decode_step_s + more_s)
