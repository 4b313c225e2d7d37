"""Paged attention in plain torch operations, on any device.

A query attends to its past in KV tiles of `KV_TILE_TOKENS` keys, counted from position 0. Each tile
has a softmax of its own; the tiles are then added up, first to last, rescaled to their common
maximum (split-KV, as in flash decoding).

Batch invariance: the order of a query's sums depends only on its position in its sequence. Its bits
are the same in a decode and in a chunk, with any neighbours and with sequences of any length.

Shapes: B sequences, n new tokens of each, T rows in the step (tokens and padding), Hq query heads,
Hkv key-value heads, G = Hq / Hkv query heads per key-value head, S KV tiles, K = `KV_TILE_TOKENS`
keys in each, D head size, M = G * n, padded to a multiple of four. The G query heads of a key-value
head are folded into the query length: one product of (M, D) and (D, K) serves all of them, and
keys and values are not repeated. All sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from torch.nn.functional import pad

from streaming.backends.attention.tiled_metadata import (
    KV_TILE_TOKENS,
    GroupPlan,
    TiledAttentionMetadata,
    WorkItem,
)

_LOWEST = torch.finfo(torch.float32).min
"""Lower bound of a tile's best score: finite, to avoid -inf - -inf = NaN where all is masked."""


def tiled_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attention_metadata: TiledAttentionMetadata,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from each token to its own sequence's past. Called by transformers for each layer.

    Args:
        module: the layer; not used.
        query: (1, Hq, T, D).
        key: (num_blocks, Hkv, block_size, D), as returned by `TiledKVCache.update`.
        value: likewise; its D may differ.
        attention_mask: must be None: masks follow from the metadata.
        attention_metadata: attention metadata of the step.
        scaling: factor on scores; None for D ** -0.5.
        sliding_window: number of tokens that a token sees, itself included; None for all.
        softcap: must be None.
        **_: arguments that do not affect the result.

    Returns:
        (1, T, Hq, D), zeros in padding rows, and None in place of the attention weights.

    Raises:
        NotImplementedError: there is a mask or a soft cap.
    """
    if attention_mask is not None or softcap is not None:
        raise NotImplementedError("paged attention supports neither masks nor soft caps")
    num_heads, num_rows, head_dim = query.shape[1:]
    num_kv_heads = key.shape[1]
    queries_per_kv = num_heads // num_kv_heads
    # Query head h belongs to key-value head h // G: split Hq into (Hkv, G).
    output = query.new_empty(num_rows, num_kv_heads, queries_per_kv, value.shape[-1])
    rows = query[0].transpose(0, 1).reshape(num_rows, num_kv_heads, queries_per_kv, head_dim)
    for group in attention_metadata.groups:
        plan = group.plan(key, queries_per_kv, sliding_window)
        # Fold: (B, n, Hkv, G, D) -> (B, Hkv, G * n, D).
        shape = (group.num_seqs, group.num_new, num_kv_heads, queries_per_kv, -1)
        folded = rows[group.start : group.end].view(shape).permute(0, 2, 3, 1, 4).flatten(2, 3)
        attended = _attend(folded.float(), key, value, plan, scaling)
        # Unfold: (B, Hkv, G * n, D) -> (B * n, Hkv, G, D).
        shape = (group.num_seqs, num_kv_heads, queries_per_kv, group.num_new, -1)
        unfolded = attended.reshape(shape).permute(0, 3, 1, 2, 4)
        output[group.start : group.end] = unfolded.flatten(0, 1)
    # Padding rows come last. Zero them: `new_empty` may contain NaN.
    if (num_tokens := len(attention_metadata.slots)) < num_rows:
        output[num_tokens:] = 0
    return output.flatten(1, 2)[None], None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: GroupPlan,
    scaling: float | None,
) -> torch.Tensor:
    """Attend from queries (B, Hkv, G * n, D) float32 to the cache.

    Returns:
        (B, Hkv, G * n, D) float32.
    """
    num_queries, head_dim = query.shape[2:]
    # Scaling the queries once is cheaper than scaling the scores of each tile.
    query = query * (head_dim**-0.5 if scaling is None else scaling)
    if (num_padded := plan.last.shape[2]) > num_queries:
        query = pad(query, (0, 0, 0, num_padded - num_queries))
    # Tiles are the innermost loop: only the results of one item's queries are kept at a time.
    by_seqs = []
    for items_of_seqs in plan.work_items(max(head_dim, value.shape[-1])):
        by_queries = []
        for items in items_of_seqs:
            parts = [_attend_tiles(query, key, value, plan, item) for item in items]
            attended, total, best = (_concat(some, dim=1) for some in zip(*parts, strict=True))
            by_queries.append(_merge_tiles(attended, total, best))
        by_seqs.append(_concat(by_queries, dim=2))
    return _concat(by_seqs, dim=0)[:, :, :num_queries]


def _concat(parts: SequenceOf[torch.Tensor], *, dim: int) -> torch.Tensor:
    """Concatenate, without a copy if there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=dim)


def _attend_tiles(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: GroupPlan,
    item: WorkItem,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend from the queries of a work item to each of its tiles separately.

    Args:
        query: (B, Hkv, M, D) scaled queries of the whole group.
        key: (num_blocks, Hkv, block_size, D).
        value: likewise.
        plan: of the group.
        item: selects sequences, queries and tiles.

    Returns:
        With the item's B, S and M: the sum of the values weighted by exp(score - best),
        (B, S, Hkv, M, D); the sum of these weights and the best score, each (B, S, Hkv, M, 1). The
        sums are zero and the best score is `_LOWEST` where a query sees nothing of a tile.
    """
    query = query[item.seqs, :, item.queries]
    num_seqs, num_tiles, num_kv_heads, _ = item.rows.shape
    num_queries, head_dim = query.shape[2:]
    keys = _gather(key, item.rows, plan.scratch, "keys")  # (B * S * Hkv, K, D)
    values = _gather(value, item.rows, plan.scratch, "values")
    # One batched product for all (sequence, tile, key-value head): (M, D) by (D, K).
    queries = query[:, None].expand(-1, num_tiles, -1, -1, -1)
    scores = torch.bmm(queries.reshape(-1, num_queries, head_dim), keys.transpose(1, 2))
    by_tile = scores.view(num_seqs, num_tiles, num_kv_heads, num_queries, -1)
    for tiles, mask in plan.masks(item):
        by_tile[:, tiles].add_(mask)
    best = scores.amax(dim=-1, keepdim=True).clamp_(min=_LOWEST)
    weights = scores.sub_(best).exp_()  # in place of the scores
    total = weights.sum(dim=-1, keepdim=True)
    shape = (num_seqs, num_tiles, num_kv_heads, num_queries, -1)
    return torch.bmm(weights, values).view(shape), total.view(shape), best.view(shape)


def _merge_tiles(attended: torch.Tensor, total: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Merge the results of `_attend_tiles`, first tile to last.

    Returns:
        (B, Hkv, M, D): the weighted sum of all values, divided by the sum of all weights.
    """
    num_tiles = attended.shape[1]
    if num_tiles == 1:
        return attended[:, 0] / total[:, 0]
    shares = (best - best.amax(dim=1, keepdim=True)).exp_()
    attended, total = attended * shares, total * shares
    whole_attended, whole_total = attended[:, 0], total[:, 0]
    # Add tile by tile: the order of torch's sum over a dimension may depend on its size, and the
    # number of tiles depends on the longest sequence of the group. An unseen tile adds exactly 0.
    for tile in range(1, num_tiles):
        whole_attended += attended[:, tile]
        whole_total += total[:, tile]
    return whole_attended / whole_total


def _gather(
    cache: torch.Tensor,
    rows: torch.Tensor,
    scratch: dict[tuple[Any, ...], torch.Tensor],
    name: str,
) -> torch.Tensor:
    """Copy tiles out of a layer's cache and widen them to float32.

    Args:
        cache: (num_blocks, Hkv, block_size, D).
        rows: (B, S, Hkv, K / block_size), see `GroupPlan.rows`.
        scratch: buffers of the plan.
        name: of the buffer; its contents are overwritten by the next call with this name.

    Returns:
        (B * S * Hkv, K, D) float32. The blocks of a tile follow each other in `rows`, so gathered
        slabs of (block_size, D) are whole tiles.
    """
    num_blocks, num_kv_heads, block_size, head_dim = cache.shape
    slabs = cache.view(num_blocks * num_kv_heads, block_size * head_dim)
    shape = (rows.numel(), slabs.shape[1])
    if (name, shape) not in scratch:
        scratch[name, shape] = slabs.new_empty(shape, dtype=torch.float32)
        scratch[cache.dtype, shape] = slabs.new_empty(shape)
    gathered = scratch[name, shape]
    if cache.dtype == torch.float32:
        torch.index_select(slabs, 0, rows.flatten(), out=gathered)
    else:
        # index_select cannot convert: gather in the cache's dtype, then widen.
        narrow = scratch[cache.dtype, shape]
        torch.index_select(slabs, 0, rows.flatten(), out=narrow)
        gathered.copy_(narrow)
    return gathered.view(-1, KV_TILE_TOKENS, head_dim)
