"""The tiled cache: how a step's chunks are grouped, and what is written where."""

from __future__ import annotations

from math import nan

import pytest
import torch

from streaming.backends.attention.tiled_kv_cache import TILED_ATTENTION, TiledKVCache
from streaming.backends.attention.tiled_metadata import TiledAttentionMetadata
from tests.streaming.backends.attentions import AttentionRig


def make_rig(lengths: list[int], *, done: list[int], block_size: int = 4) -> AttentionRig:
    """Return sequences of which some tokens are taken to be in the cache, which is not filled."""
    rig = AttentionRig(TILED_ATTENTION, lengths, block_size=block_size)
    rig.done = done
    return rig


def metadata_of(rig: AttentionRig) -> TiledAttentionMetadata:
    metadata = rig.cache.metadata
    assert isinstance(metadata, TiledAttentionMetadata)
    return metadata


def test_decodes_are_grouped_by_length_and_each_prefill_is_a_group() -> None:
    rig = make_rig([4, 130, 9, 70, 64, 30, 250], done=[3, 129, 2, 69, 63, 20, 249])
    rig.step([(2, 7), (1, 1), (3, 1), (0, 1), (4, 1), (5, 5), (6, 1)])
    groups = metadata_of(rig).groups
    assert [(group.start, group.num_seqs, group.num_new) for group in groups] == [
        (0, 2, 1),
        (2, 1, 1),
        (3, 2, 1),
        (5, 1, 7),
        (12, 1, 5),
    ]
    assert [group.lengths.tolist() for group in groups] == [[4, 64], [70], [130, 250], [9], [25]]
    assert [(group.min_length, group.max_length) for group in groups] == [
        (4, 64),
        (70, 70),
        (130, 250),
        (9, 9),
        (25, 25),
    ]


def test_a_single_token_of_a_longer_prompt_is_no_decode() -> None:
    rig = make_rig([20, 20], done=[18, 19])
    rig.step([(0, 1), (1, 1)])
    assert [group.lengths.tolist() for group in metadata_of(rig).groups] == [[20], [19]]


def test_block_tables_are_padded_to_whole_tiles_with_a_block_of_their_own() -> None:
    rig = make_rig([66, 128, 10], done=[65, 127, 3], block_size=16)
    rig.step([(0, 1), (1, 1), (2, 4)])
    decodes, prefill = metadata_of(rig).groups
    first, second, third = (row.block_ids for row in rig.rows)
    assert decodes.blocks.tolist() == [first + first[:1] * 3, second]
    assert prefill.blocks.tolist() == [third[:1] * 4]


def test_blocks_without_a_token_are_not_in_a_table() -> None:
    rig = make_rig([40], done=[0], block_size=16)
    rig.step([(0, 20)])
    [group] = metadata_of(rig).groups
    blocks = rig.rows[0].block_ids
    assert group.blocks.tolist() == [[blocks[0], blocks[1], blocks[0], blocks[0]]]


@pytest.mark.parametrize(
    ("done", "num_tokens", "is_fresh"),
    [(0, 4, False), (0, 3, True), (4, 1, True), (5, 2, False), (3, 2, True), (3, 1, False)],
    ids=["fills", "begins", "begins the second", "continues", "fills and begins", "completes"],
)
def test_a_block_is_fresh_if_it_is_begun_and_not_filled(
    done: int, num_tokens: int, is_fresh: bool
) -> None:
    rig = make_rig([9], done=[done])
    rig.step([(0, num_tokens)])
    last_block = rig.rows[0].block_ids[(done + num_tokens - 1) // 4]
    assert metadata_of(rig).fresh_blocks.tolist() == ([last_block] if is_fresh else [])


def test_tokens_are_written_to_their_slots_and_fresh_blocks_are_zeroed() -> None:
    rig = make_rig([7, 9], done=[0, 0])
    rig.step([(1, 1)])  # makes the tensors
    cache = rig.cache
    for tensor in (cache.keys[0], cache.values[0]):
        tensor.fill_(nan)
    rig.step([(0, 6)], num_more=2)
    [row, _] = rig.rows
    first, second = row.block_ids
    for tensor, tokens in ((cache.keys[0], row.key), (cache.values[0], row.value)):
        assert tensor.shape == (rig.num_blocks, 2, 4, rig.head_dim)
        assert torch.equal(tensor[first], tokens[:4].transpose(0, 1))
        assert torch.equal(tensor[second, :, :2], tokens[4:6].transpose(0, 1))
        assert not tensor[second, :, 2:].any()
        others = sorted(set(range(rig.num_blocks)) - {first, second})
        assert bool(tensor[others].isnan().all())


def test_a_tile_must_consist_of_whole_blocks() -> None:
    with pytest.raises(AssertionError, match="whole blocks"):
        TiledKVCache(2, 48)
