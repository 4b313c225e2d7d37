"""Attention over a paged cache in torch's own operations, on any device.

A query attends to its past in spans of `SPAN_TOKENS` keys from the sequence's beginning, each span
by itself; then the spans are added up, first to last, each with its part of the softmax (as flash
decoding does). So a token's place in its sequence fixes the order of all sums: it does not matter
whether it is decoded or read in a chunk, which rows are beside it, or who is how long.

Shapes: B sequences, n new tokens of each, T tokens in the step, Hq query heads, Hkv key-value
heads, G = Hq / Hkv queries to a key-value head, S spans, K = `SPAN_TOKENS` keys in each, D head
size, M = G * n, padded to a multiple of four. Query heads of one key-value head are folded
into the query length, so keys and values are never copied for them. All sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from torch.nn.functional import pad

from streaming.backends.attention.tile_layout import SPAN_TOKENS, GroupView, Piece, TileLayout

_LOWEST = torch.finfo(torch.float32).min
"""Stands in for the best of no scores: minus infinity less itself would be no number."""


def tiled_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    batch_layout: TileLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, each sequence to its own past.

    Args:
        query: (1, Hq, T, D).
        key, value: (num_blocks, Hkv, block_size, D), as `TiledKVCache.update` returned them.
        sliding_window: a token sees at most so many, itself included.

    Returns:
        (1, T, Hq, D), zeros for rows that are nobody's, and no weights.
    """
    if attention_mask is not None or softcap is not None:
        raise NotImplementedError("the paged attention takes no mask and no soft cap")
    num_heads, num_rows, head_dim = query.shape[1:]
    num_kv_heads = key.shape[1]
    num_groups = num_heads // num_kv_heads
    output = query.new_empty(num_rows, num_kv_heads, num_groups, value.shape[-1])
    rows = query[0].transpose(0, 1).reshape(num_rows, num_kv_heads, num_groups, head_dim)
    for group in batch_layout.groups:
        view = group.view(key, num_groups, sliding_window)
        shape = (group.num_seqs, group.num_new, num_kv_heads, num_groups, -1)
        # (B, n, Hkv, G, D) -> (B, Hkv, G * n, D)
        folded = rows[group.start : group.end].view(shape).permute(0, 2, 3, 1, 4).flatten(2, 3)
        attended = _attend(folded.float(), key, value, view, scaling)
        shape = (group.num_seqs, num_kv_heads, num_groups, group.num_new, -1)
        unfolded = attended.reshape(shape).permute(0, 3, 1, 2, 4)
        output[group.start : group.end] = unfolded.flatten(0, 1)
    if (num_tokens := len(batch_layout.slots)) < num_rows:
        output[num_tokens:] = 0
    return output.flatten(1, 2)[None], None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    view: GroupView,
    scaling: float | None,
) -> torch.Tensor:
    """Attend queries (B, Hkv, G * n, D) to the cache; return (B, Hkv, G * n, D). All float32."""
    num_queries, head_dim = query.shape[2:]
    query = query * (head_dim**-0.5 if scaling is None else scaling)
    if (num_padded := view.last.shape[2]) > num_queries:
        query = pad(query, (0, 0, 0, num_padded - num_queries))
    by_seqs = []
    for query_pieces in view.pieces(max(head_dim, value.shape[-1])):
        by_queries = []
        for span_pieces in query_pieces:
            parts = [_attend_spans(query, key, value, view, piece) for piece in span_pieces]
            attended, total, best = (_join(some, dim=1) for some in zip(*parts, strict=True))
            by_queries.append(_add_up(attended, total, best))
        by_seqs.append(_join(by_queries, dim=2))
    return _join(by_seqs, dim=0)[:, :, :num_queries]


def _join(parts: SequenceOf[torch.Tensor], *, dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=dim)


def _attend_spans(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    view: GroupView,
    piece: Piece,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend the scaled queries of a piece to each of its spans by itself.

    Args:
        query: (B, Hkv, M, D) of the whole group.

    Returns:
        With the piece's B, S and M: the sum of the values, weighted by exp(score - best),
        (B, S, Hkv, M, D); the sum of the weights and the best score, (B, S, Hkv, M, 1). Zeros where
        a query sees nothing of a span.
    """
    query = query[piece.seqs, :, piece.queries]
    num_seqs, num_spans, num_kv_heads, _ = piece.rows.shape
    num_queries, head_dim = query.shape[2:]
    keys = _gather(key, piece.rows, view.scratch, "keys")  # (B * S * Hkv, K, D)
    values = _gather(value, piece.rows, view.scratch, "values")
    queries = query[:, None].expand(-1, num_spans, -1, -1, -1)
    scores = torch.bmm(queries.reshape(-1, num_queries, head_dim), keys.transpose(1, 2))
    by_span = scores.view(num_seqs, num_spans, num_kv_heads, num_queries, -1)
    for spans, mask in view.masks(piece):
        by_span[:, spans].add_(mask)
    best = scores.amax(dim=-1, keepdim=True).clamp_(min=_LOWEST)
    weights = scores.sub_(best).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    shape = (num_seqs, num_spans, num_kv_heads, num_queries, -1)
    return torch.bmm(weights, values).view(shape), total.view(shape), best.view(shape)


def _add_up(attended: torch.Tensor, total: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Add up what `_attend_spans` returned, first to last; return (B, Hkv, M, D)."""
    num_spans = attended.shape[1]
    if num_spans == 1:
        return attended[:, 0] / total[:, 0]
    shares = (best - best.amax(dim=1, keepdim=True)).exp_()
    attended, total = attended * shares, total * shares
    whole_attended, whole_total = attended[:, 0], total[:, 0]
    # One by one: a library's sum may take another order when there are more of them. A span that
    # is not seen adds zero, which changes nothing.
    for span in range(1, num_spans):
        whole_attended += attended[:, span]
        whole_total += total[:, span]
    return whole_attended / whole_total


def _gather(
    cache: torch.Tensor,
    rows: torch.Tensor,
    scratch: dict[tuple[Any, ...], torch.Tensor],
    name: str,
) -> torch.Tensor:
    """Copy spans out of a layer's cache, (num_blocks, Hkv, block_size, D).

    Returns:
        (B * S * Hkv, K, D) float32, in the scratch of that name.
    """
    num_blocks, num_kv_heads, block_size, head_dim = cache.shape
    seen = cache.view(num_blocks * num_kv_heads, block_size * head_dim)
    shape = (rows.numel(), seen.shape[1])
    if (name, shape) not in scratch:
        scratch[name, shape] = seen.new_empty(shape, dtype=torch.float32)
        scratch[cache.dtype, shape] = seen.new_empty(shape)
    gathered = scratch[name, shape]
    if cache.dtype == torch.float32:
        torch.index_select(seen, 0, rows.flatten(), out=gathered)
    else:
        narrow = scratch[cache.dtype, shape]
        torch.index_select(seen, 0, rows.flatten(), out=narrow)
        gathered.copy_(narrow)
    return gathered.view(-1, SPAN_TOKENS, head_dim)
