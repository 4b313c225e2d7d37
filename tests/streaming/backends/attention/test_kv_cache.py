"""Paged attention equals the formula, in both implementations, and so do their caches."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.streaming.backends.attentions import (
    BLOCK_SIZES,
    HEAD_DIM,
    AttentionRig,
    attention_named,
)
from tests.support import property_test

pytestmark = pytest.mark.parametrize("name", BLOCK_SIZES)


def make_rig(name: str, lengths: list[int], **options: Any) -> AttentionRig:
    options.setdefault("block_size", BLOCK_SIZES[name])
    return AttentionRig(attention_named(name), lengths, **options)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1), (14, 2), (1, 1)])
@pytest.mark.parametrize("sliding_window", [None, 1, 3, 4, 100])
def test_prefill_then_decodes_equal_plain_attention(
    name: str, num_heads: int, num_kv_heads: int, sliding_window: int | None
) -> None:
    rig = make_rig(name, [21, 18], num_heads=num_heads, num_kv_heads=num_kv_heads)
    rig.step([(0, 16), (1, 14)], sliding_window=sliding_window)
    for _ in range(4):
        rig.step([(0, 1), (1, 1)], sliding_window=sliding_window)
    rig.check(sliding_window=sliding_window)


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_prompt_can_be_cut_anywhere(name: str, cut: int) -> None:
    rig = make_rig(name, [20])
    rig.step([(0, cut)])
    rig.step([(0, 20 - cut)])
    rig.check()


def test_a_sequence_of_one_token_attends_to_itself(name: str) -> None:
    rig = make_rig(name, [1])
    rig.step([(0, 1)])
    torch.testing.assert_close(
        rig.outputs[0][0][0], rig.rows[0].value[0].repeat_interleave(2, dim=0)
    )


def test_a_given_scaling_is_used(name: str) -> None:
    rig = make_rig(name, [6])
    rig.step([(0, 5)], scaling=0.25)
    rig.step([(0, 1)], scaling=0.25)
    rig.check(scaling=0.25)


def test_layers_have_caches_of_their_own(name: str) -> None:
    rig = make_rig(name, [7])
    for layer_idx in range(2):
        rig.done = [0]
        rig.outputs = [[]]
        rig.rows[0].value += layer_idx
        rig.step([(0, 7)], layer_idx=layer_idx)
        rig.check()
    assert not torch.equal(rig.cache.values[0], rig.cache.values[1])
    assert rig.cache.bytes_per_token == 2 * 2 * 2 * HEAD_DIM * 4
    assert rig.cache.get_seq_length() == 0
    rig.cache.clear()
    assert rig.cache.bytes_per_token == 0


def test_a_cache_tells_its_own_tensors_from_copies(name: str) -> None:
    """Some models copy the whole cache before they call attention."""
    rig = make_rig(name, [7])
    rig.step([(0, 7)])
    keys, values = rig.cache.keys[0], rig.cache.values[0]
    assert rig.cache.owns(keys)
    assert rig.cache.owns(values)
    assert rig.cache.owns(keys.view(keys.shape))
    assert not rig.cache.owns(keys.clone())
    assert not rig.cache.owns(keys[:, :1])


def test_noise_is_the_same_in_each_cache(name: str) -> None:
    rigs = [make_rig(name, [7], seed=seed) for seed in (1, 2)]
    for rig in rigs:
        rig.step([(0, 7)])
        rig.cache.fill_with_noise()
    first, second = (rig.cache for rig in rigs)
    assert torch.equal(first.keys[0], second.keys[0])
    assert torch.equal(first.values[0], second.values[0])
    assert not torch.equal(first.keys[0].flatten(), first.values[0].flatten())


@pytest.mark.parametrize("left", [nan, inf])
def test_values_of_an_earlier_sequence_affect_nothing(name: str, left: float) -> None:
    """A masked value has weight 0, and 0 * NaN = NaN: one broken request would hurt others."""
    rig = make_rig(name, [40, 3])
    rig.step([(0, 5)])  # makes the tensors
    size = BLOCK_SIZES[name]
    free = set(range(rig.num_blocks)) - set(rig.rows[0].block_ids[: -(-5 // size)])
    for tensor in (rig.cache.keys[0], rig.cache.values[0]):
        tensor[list(free)] = left
    rig.step([(0, 1), (1, 2)])
    for chunks in ([(0, 1), (1, 1)], [(0, 1)], [(0, 20)], [(0, 1)], [(0, 1)]):
        rig.step(chunks)
    rig.check()


def test_nan_in_a_sequence_does_not_reach_others(name: str) -> None:
    rig = make_rig(name, [20, 20])
    rig.rows[0].value[3] = nan
    rig.step([(0, 19), (1, 19)])
    rig.step([(0, 1), (1, 1)])
    assert bool(torch.cat(rig.outputs[0])[3:].isnan().all())
    rig.outputs[0] = []
    rig.check()


def test_padding_rows_are_neither_cached_nor_attended_to(name: str) -> None:
    rig = make_rig(name, [20, 9])
    rig.step([(0, 15)], num_more=1)
    tensors = (rig.cache.keys[0], rig.cache.values[0])
    before = [tensor.clone() for tensor in tensors]
    rig.step([(1, 8)], num_more=3)
    rig.step([(0, 5), (1, 1)], num_more=15)
    rig.check()
    others = sorted(set(range(rig.num_blocks)) - {i for row in rig.rows for i in row.block_ids})
    for tensor, earlier in zip(tensors, before, strict=True):
        assert torch.equal(tensor[others].view(torch.uint8), earlier[others].view(torch.uint8))


@pytest.mark.parametrize("option", ["attention_mask", "softcap"])
def test_masks_and_soft_caps_are_rejected(name: str, option: str) -> None:
    rig = make_rig(name, [3])
    rig.step([(0, 2)])
    tensor = torch.zeros(1, 4, 1, HEAD_DIM)
    with pytest.raises(NotImplementedError, match="neither masks nor soft caps"):
        rig.attention.function(
            torch.nn.Module(),
            tensor,
            rig.cache.keys[0],
            rig.cache.values[0],
            torch.ones(1, 1) if option == "attention_mask" else None,
            attention_metadata=rig.cache.metadata,
            softcap=1.0 if option == "softcap" else None,
        )


@property_test
@given(data=st.data())
def test_any_steps_of_any_sequences_equal_plain_attention(name: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    window = data.draw(st.sampled_from([None, 2, 5, 17]))
    rig = make_rig(
        name,
        lengths,
        block_size=data.draw(st.sampled_from([1, 2, 4, 16] if name == "torch" else [16])),
        num_kv_heads=data.draw(st.sampled_from([1, 2, 4])),
        seed=data.draw(st.integers(0, 1000)),
    )
    while rig.done != lengths:
        left = [(i, length - rig.done[i]) for i, length in enumerate(lengths)]
        chunks = [(i, data.draw(st.integers(0, num_left))) for i, num_left in left if num_left]
        chunks = [(i, num_tokens) for i, num_tokens in chunks if num_tokens]
        rig.step(
            chunks or [next((i, 1) for i, num_left in left if num_left)], sliding_window=window
        )
    rig.check(sliding_window=window)


@pytest.mark.parametrize("sliding_window", [None, 40, 150])
def test_sequences_longer_than_a_tile_equal_plain_attention(
    name: str, sliding_window: int | None
) -> None:
    rig = make_rig(name, [137, 65, 5], num_heads=2)
    rig.step([(0, 128), (1, 63), (2, 2)], sliding_window=sliding_window)
    for _ in range(2):
        rig.step([(0, 1), (1, 1), (2, 1)], sliding_window=sliding_window)
    rig.check(sliding_window=sliding_window)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_cuts_nor_neighbours_affect_the_bits(name: str, dtype: torch.dtype) -> None:
    """Longer than a KV split: read whole, read in chunks, decoded, alone and with a neighbour."""
    length = 700
    options: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 2, "dtype": dtype, "block_size": 16}
    whole, cut = (make_rig(name, [length, 50], **options) for _ in range(2))
    whole.step([(0, length)])
    cut.step([(0, 301), (1, 30)])
    cut.step([(1, 19), (0, 200)])
    for num_tokens in (1, 1, 9, 100):
        cut.step([(0, num_tokens)])
    while cut.done[0] < length:
        cut.step([(0, 1)])
    assert torch.equal(whole.outputs[0][0], torch.cat(cut.outputs[0]))
    whole.check()
