"""Plans of sequence groups: gathered blocks, masks and work items, each against its definition."""

from __future__ import annotations

import pytest
import torch

from streaming.backends.attention.tiled_metadata import (
    KV_TILE_TOKENS,
    GroupPlan,
    SequenceGroup,
    TiledAttentionMetadata,
)

NUM_KV_HEADS = 2
BLOCK_SIZE = 32
BLOCKS_PER_TILE = KV_TILE_TOKENS // BLOCK_SIZE


def make_group(lengths: list[int], *, num_new: int = 1) -> SequenceGroup:
    """Return a group in which sequence b has blocks 100 * b, 100 * b + 1, and so on."""
    num_blocks = -(-max(lengths) // KV_TILE_TOKENS) * BLOCKS_PER_TILE
    firsts = 100 * torch.arange(len(lengths))
    return SequenceGroup(
        start=5,
        num_new=num_new,
        blocks=firsts[:, None] + torch.arange(num_blocks),
        lengths=torch.tensor(lengths),
        min_length=min(lengths),
        max_length=max(lengths),
    )


def make_plan(
    group: SequenceGroup,
    *,
    queries_per_kv: int = 1,
    sliding_window: int | None = None,
    num_kv_heads: int = NUM_KV_HEADS,
) -> GroupPlan:
    cache = torch.empty(1, num_kv_heads, BLOCK_SIZE, 16, device="meta")
    return group.plan(cache, queries_per_kv, sliding_window)


def test_a_group_covers_all_new_tokens_of_its_sequences() -> None:
    group = make_group([70, 9, 4], num_new=3)
    assert (group.num_seqs, group.end) == (3, 5 + 9)


def test_rows_of_a_plan_are_the_blocks_of_each_head() -> None:
    """The cache is seen as one row for each (block, head), block by block."""
    plan = make_plan(make_group([70, 128]))
    assert plan.rows.shape == (2, 2, NUM_KV_HEADS, BLOCKS_PER_TILE)
    assert plan.rows[0, 0].tolist() == [[0, 2], [1, 3]]
    assert plan.rows[1, 1].tolist() == [[204, 206], [205, 207]]


def test_layers_of_one_kind_share_a_plan() -> None:
    group = make_group([70])
    plan = make_plan(group)
    assert make_plan(group) is plan
    assert make_plan(group, sliding_window=3) is not plan
    assert make_plan(group, queries_per_kv=2) is not plan
    assert make_plan(group, num_kv_heads=1) is not plan


def test_queries_are_ordered_by_head_then_token_and_padded() -> None:
    plan = make_plan(make_group([10, 7], num_new=2), queries_per_kv=3)
    assert plan.last.shape == (2, 1, 8, 1)
    assert plan.last.flatten(1).tolist() == [[8, 9, 8, 9, 8, 9, 9, 9], [5, 6, 5, 6, 5, 6, 6, 6]]


@pytest.mark.parametrize("sliding_window", [None, 1, 40, 64, 100, 1000])
@pytest.mark.parametrize(
    ("lengths", "num_new"), [([1], 1), ([63], 1), ([64, 65], 1), ([130, 191, 256], 1), ([300], 150)]
)
def test_masks_hide_exactly_what_a_query_does_not_see(
    lengths: list[int], num_new: int, sliding_window: int | None
) -> None:
    plan = make_plan(make_group(lengths, num_new=num_new), sliding_window=sliding_window)
    num_seqs, num_tiles = plan.rows.shape[:2]
    num_queries = plan.last.shape[2]
    scores = torch.zeros(num_seqs, num_tiles, 1, num_queries, KV_TILE_TOKENS)
    for items_of_seqs in plan.work_items(16):
        for items in items_of_seqs:
            for item in items:
                part = scores[item.seqs, item.tiles, :, item.queries]
                for tiles, mask in plan.masks(item):
                    part[:, tiles] += mask
    positions = torch.arange((plan.first_tile + num_tiles) * KV_TILE_TOKENS)
    last = plan.last[:, 0]  # (B, M, 1)
    is_seen = positions <= last
    if sliding_window is not None:
        is_seen &= positions > last - sliding_window
    first = plan.first_tile * KV_TILE_TOKENS
    assert not is_seen[..., :first].any(), "tiles that are seen were left out"
    actual = scores[:, :, 0].transpose(1, 2).flatten(2)  # (B, M, S * K)
    expected = torch.zeros(actual.shape).masked_fill(~is_seen[..., first:], -torch.inf)
    assert torch.equal(actual, expected)


def test_tiles_that_all_queries_see_whole_have_no_mask() -> None:
    plan = make_plan(make_group([1000, 990]))
    [[[item]]] = plan.work_items(16)
    [(tiles, mask)] = plan.masks(item)
    assert (tiles.start, tiles.stop) == (15, 16)
    assert mask.shape == (2, 1, 1, 4, KV_TILE_TOKENS)


def test_a_mask_is_made_once_for_all_layers() -> None:
    plan = make_plan(make_group([70]))
    [[[item]]] = plan.work_items(16)
    [[(_, first)], [(_, second)]] = [list(plan.masks(item)) for _ in range(2)]
    assert first is second


@pytest.mark.parametrize(
    ("lengths", "num_new", "num_kv_heads", "head_dim"),
    [([40], 1, 2, 64), ([2**15], 64, 8, 128), ([2**14] * 20, 1, 8, 128), ([3000], 3000, 4, 64)],
    ids=["short", "long past", "many long pasts", "long prompt"],
)
def test_work_items_cover_everything_once_in_bounded_memory(
    lengths: list[int], num_new: int, num_kv_heads: int, head_dim: int
) -> None:
    plan = make_plan(
        make_group(lengths, num_new=num_new), queries_per_kv=2, num_kv_heads=num_kv_heads
    )
    num_seqs, num_tiles = plan.rows.shape[:2]
    times = torch.zeros(num_seqs, plan.last.shape[2], num_tiles, dtype=torch.int64)
    for items_of_seqs in plan.work_items(head_dim):
        for items in items_of_seqs:
            for item in items:
                times[item.seqs, item.queries, item.tiles] += 1
                assert item.queries.start % 4 == 0
                assert torch.equal(item.rows, plan.rows[item.seqs, item.tiles])
                num_heads = (item.seqs.stop - item.seqs.start) * num_kv_heads
                num_keys = (item.tiles.stop - item.tiles.start) * KV_TILE_TOKENS
                num_queries = item.queries.stop - item.queries.start
                assert num_heads * num_queries * num_keys <= 2**20
                assert num_heads * num_keys * head_dim <= 2**23
                assert num_heads * num_queries * num_tiles * head_dim <= 2**23
    assert bool((times == 1).all())


def test_rows_of_the_metadata_are_the_slots_of_each_head() -> None:
    slots = torch.tensor([5, 17, 8, 3])
    metadata = TiledAttentionMetadata(
        slots=slots, groups=(), fresh_blocks=torch.empty(0, dtype=torch.long)
    )
    cache = torch.arange(5 * 3 * 4).view(5, 3, 4)  # (num_blocks, Hkv, block_size)
    expected = cache[slots // 4, :, slots % 4].flatten()
    assert cache.flatten()[metadata.rows(3, 4)].tolist() == expected.tolist()
