"""Attention over a paged cache, plugged into unmodified Hugging Face models.

All tokens of a step lie in one row, `(1, num_tokens)`: first one token for each decoding sequence,
then the prefill chunks one behind the other. Linear layers do not care; attention does, and learns
from a `BatchLayout` which rows belong together and where their keys and values lie.

A query attends to its past in spans of `SPAN_TOKENS` keys from the sequence's beginning, each span
by itself; then the spans are added up, first to last, weighted by how much of the softmax lies in
each (as flash decoding does). So the order of all sums is fixed by a token's place in its sequence:
it does not matter whether the token is decoded or read in a chunk, or which rows are beside it.
That the kernel within a span keeps to it, too, takes a few paddings, which were found by trying:
`_QUERY_STEP` and `_KEY_STEP`.

Shapes: B sequences, n new tokens of each, T tokens in the step, Hq query heads, Hkv key-value
heads, G = Hq / Hkv queries to a key-value head, S spans, K keys in a span, D head size, M = G * n
padded. Query heads of one key-value head are folded into the query length, so keys and values are
never copied for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad

ATTENTION_NAME = "tokenwire_paged"
LAYOUT_ARGUMENT = "batch_layout"

SPAN_TOKENS = 128
"""Keys that are reduced in one go."""
_KEY_STEP = 32
"""A span is padded to a multiple of it: behind that, vectors end in single elements."""
_QUERY_STEP = 4
"""Queries are padded to a multiple of it: for fewer the kernels add up in another order."""
_MAX_PARTIAL_ELEMENTS = 2**25
"""Most elements of the spans' partial results at a time, before they are added up."""


@dataclass(slots=True)
class QueryGroup:
    """Rows `start` to `start + B * n` of the step, of B sequences with n new tokens each.

    Attributes:
        num_new: n.
        blocks: (B, S * K / block_size) block tables, padded with a block of the same sequence.
        lengths: (B,) cached tokens, the new ones included and last.
        min_length: the smallest of them, known without a look.
    """

    start: int
    num_new: int
    blocks: torch.Tensor
    lengths: torch.Tensor
    min_length: int
    _views: dict[tuple[Any, ...], GroupView] = field(default_factory=dict)

    @property
    def num_seqs(self) -> int:
        return len(self.lengths)

    @property
    def end(self) -> int:
        return self.start + self.num_seqs * self.num_new

    def view(
        self, cache: torch.Tensor, num_groups: int, sliding_window: int | None, dtype: torch.dtype
    ) -> GroupView:
        """Return what attention needs to know; layers of one kind share it."""
        num_kv_heads, block_size = cache.shape[1:3]
        key = (num_kv_heads, num_groups, sliding_window, dtype)
        if key not in self._views:
            self._views[key] = _view(
                self, num_kv_heads, block_size, num_groups, sliding_window, dtype
            )
        return self._views[key]


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group as the layers of one kind see it.

    Attributes:
        rows: (B * S * Hkv * blocks in a span,) rows of the cache seen as one for each (block, head).
        num_spans: S; 1 where none of the sequences is longer than a span.
        span_tokens: K.
        mask: (B * S, 1, M, K), 0 where a query sees a key and -inf where it does not.
        is_seen: (B, S, 1, M) whether a query sees anything of a span.
    """

    rows: torch.Tensor
    num_spans: int
    span_tokens: int
    mask: torch.Tensor
    is_seen: torch.Tensor


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Where the tokens of one step come from and where they go.

    Attributes:
        slots: (T,) place in the cache of each new token: block * block_size + offset.
        groups: all rows of the step.
        fresh_blocks: those that this step begins and does not fill. They are wiped: whoever had
            them before may have left a NaN, which spoils a sum even where it is masked.
    """

    slots: torch.Tensor
    groups: tuple[QueryGroup, ...]
    fresh_blocks: torch.Tensor
    _rows: dict[int, torch.Tensor] = field(default_factory=dict)

    def rows(self, num_kv_heads: int, block_size: int) -> torch.Tensor:
        """Return the slots, (T * Hkv,), as rows of a cache seen as one for each (block, head)."""
        if num_kv_heads not in self._rows:
            heads = torch.arange(num_kv_heads, device=self.slots.device)
            blocks, offsets = self.slots[:, None] // block_size, self.slots[:, None] % block_size
            rows = (blocks * num_kv_heads + heads) * block_size + offsets
            self._rows[num_kv_heads] = rows.flatten()
        return self._rows[num_kv_heads]


class PagedCache:
    """Keys and values of all layers, in blocks; given to the model as `past_key_values`.

    Layers may differ in heads and head size, so each makes its tensors when it is first seen.

    Args:
        num_blocks: size of the pool.
        block_size: tokens in a block.
    """

    is_compileable = False
    """Asked for by transformers."""

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        assert _KEY_STEP % block_size == 0, "a span is made of whole blocks"
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layout: BatchLayout | None = None
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's keys and values, each (1, Hkv, T, D), to their places.

        Returns the whole cache of the layer, each (num_blocks, Hkv, block_size, D): that is what
        the attention function is then called with.
        """
        assert self.layout is not None
        if layer_idx not in self.keys:
            self.keys[layer_idx] = self._make(keys)
            self.values[layer_idx] = self._make(values)
        fresh_blocks = self.layout.fresh_blocks
        rows = self.layout.rows(keys.shape[1], self.block_size)
        for cache, new in ((self.keys[layer_idx], keys), (self.values[layer_idx], values)):
            if fresh_blocks.numel():
                cache.view(self.num_blocks, -1).index_fill_(0, fresh_blocks, 0)
            head_dim = new.shape[-1]
            cache.view(-1, head_dim).index_copy_(
                0, rows, new[0].transpose(0, 1).reshape(-1, head_dim)
            )
        return self.keys[layer_idx], self.values[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are given with each step, never derived from the cache."""
        return 0

    def _make(self, like: torch.Tensor) -> torch.Tensor:
        _, num_heads, _, head_dim = like.shape
        # Not zeroed: on a CPU, memory that is never written is never taken. What is read before it
        # is written lies in fresh blocks, and those are wiped.
        return like.new_empty(self.num_blocks, num_heads, self.block_size, head_dim)


def num_padded_blocks(length: int, block_size: int) -> int:
    """Return how many blocks a table for `length` tokens is padded to: whole spans, or one."""
    step = _KEY_STEP if length <= SPAN_TOKENS else SPAN_TOKENS
    return -(-length // step) * step // block_size


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    batch_layout: BatchLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, each sequence to its own past.

    Args:
        query: (1, Hq, T, D).
        key, value: (num_blocks, Hkv, block_size, D), as `PagedCache.update` returned them.
        sliding_window: a token sees at most so many, itself included.

    Returns:
        (1, T, Hq, D), and no weights.
    """
    if attention_mask is not None or softcap is not None:
        raise NotImplementedError("the paged attention takes no mask and no soft cap")
    _, num_heads, num_tokens, _ = query.shape
    num_kv_heads = key.shape[1]
    num_groups = num_heads // num_kv_heads
    output = query.new_empty(num_tokens, num_kv_heads, num_groups, value.shape[-1])
    rows = query[0].transpose(0, 1).unflatten(1, (num_kv_heads, num_groups))  # (T, Hkv, G, D)
    for group in batch_layout.groups:
        view = group.view(key, num_groups, sliding_window, query.dtype)
        shape = (group.num_seqs, group.num_new)
        # (B, n, Hkv, G, D) -> (B, Hkv, G * n, D)
        folded = rows[group.start : group.end].unflatten(0, shape).permute(0, 2, 3, 1, 4).flatten(2, 3)
        attended = _attend(folded, key, value, view, scaling)
        unfolded = attended.unflatten(2, (num_groups, group.num_new)).permute(0, 3, 1, 2, 4)
        output[group.start : group.end].unflatten(0, shape).copy_(unfolded)
    return output.flatten(1, 2)[None], None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    view: GroupView,
    scaling: float | None,
) -> torch.Tensor:
    """Attend queries (B, Hkv, G * n, D) to the cache; return (B, Hkv, G * n, D)."""
    num_seqs, num_kv_heads, num_queries, head_dim = query.shape
    keys, values = _gather(key, view), _gather(value, view)
    if missing := view.mask.shape[2] - num_queries:
        query = pad(query, (0, 0, 0, missing))
    if view.num_spans == 1:
        return _attend_span(query, keys, values, view.mask, scaling)[0][:, :, :num_queries]
    num_partial = num_seqs * view.num_spans * num_kv_heads * query.shape[2] * values.shape[-1]
    step = query.shape[2] * _MAX_PARTIAL_ELEMENTS // max(num_partial, _MAX_PARTIAL_ELEMENTS)
    step = max(_QUERY_STEP, step // _QUERY_STEP * _QUERY_STEP)
    attended = []
    for start in range(0, query.shape[2], step):
        some = query[:, None, :, start : start + step]  # (B, 1, Hkv, M, D)
        some = some.expand(-1, view.num_spans, -1, -1, -1).flatten(0, 1)
        mask = view.mask[:, :, start : start + step]
        partial, weights = _attend_span(some, keys, values, mask, scaling)
        attended.append(
            _add_up(
                partial.unflatten(0, (num_seqs, -1)),
                weights.unflatten(0, (num_seqs, -1)),
                view.is_seen[..., start : start + step],
            )
        )
    whole = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
    return whole[:, :, :num_queries].to(query.dtype)


def _attend_span(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend queries (N, Hkv, M, D) to one span of keys, (N, Hkv, K, D).

    Returns:
        (N, Hkv, M, D), and the logarithm of the softmax's denominator, (N, Hkv, M) float32; neither
        means anything where a query sees no key.
    """
    if query.device.type == "cpu" and keys.shape[-1] == values.shape[-1]:
        attended, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=mask, scale=scaling
        )
        return attended, log_sum
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    scores = (query @ keys.transpose(2, 3)).float() * scaling + mask.float()
    log_sum = scores.logsumexp(dim=-1)
    weights = (scores - log_sum[..., None]).exp().nan_to_num()
    return weights.to(values.dtype) @ values, log_sum


def _add_up(partial: torch.Tensor, log_sums: torch.Tensor, is_seen: torch.Tensor) -> torch.Tensor:
    """Add up what the spans gave, first to last.

    Args:
        partial: (B, S, Hkv, M, D).
        log_sums: (B, S, Hkv, M) float32.
        is_seen: (B, S, 1, M).

    Returns:
        (B, Hkv, M, D) float32.
    """
    log_sums = log_sums.masked_fill(~is_seen, -torch.inf)
    weights = (log_sums - log_sums.amax(dim=1, keepdim=True)).exp()[..., None]
    total, attended = weights[:, 0].clone(), partial[:, 0] * weights[:, 0]
    # One by one: a library's sum may add in another order when there are more of them. A span that
    # is not seen adds zero, which changes nothing.
    for span in range(1, partial.shape[1]):
        total += weights[:, span]
        attended += partial[:, span] * weights[:, span]
    return attended / total


def _gather(cache: torch.Tensor, view: GroupView) -> torch.Tensor:
    """Copy spans out of a layer's cache, (num_blocks, Hkv, block_size, D), to (B * S, Hkv, K, D)."""
    num_blocks, num_kv_heads, block_size, head_dim = cache.shape
    rows = cache.view(num_blocks * num_kv_heads, block_size * head_dim).index_select(0, view.rows)
    return rows.view(-1, num_kv_heads, view.span_tokens, head_dim)


def _view(
    group: QueryGroup,
    num_kv_heads: int,
    block_size: int,
    num_groups: int,
    sliding_window: int | None,
    dtype: torch.dtype,
) -> GroupView:
    num_seqs, num_blocks = group.blocks.shape
    span_tokens = min(num_blocks * block_size, SPAN_TOKENS)
    # Spans that no query of the group can see are left out; they would add zero.
    first = 0
    if sliding_window is not None:
        first = max(0, group.min_length - group.num_new + 1 - sliding_window) // SPAN_TOKENS
    device = group.blocks.device
    blocks = group.blocks.view(num_seqs, -1, span_tokens // block_size)[:, first:]
    heads = torch.arange(num_kv_heads, device=device)
    rows = blocks[:, :, None] * num_kv_heads + heads[:, None]  # (B, S, Hkv, blocks in a span)
    positions = torch.arange(first * SPAN_TOKENS, num_blocks * block_size, device=device)
    new = torch.arange(-group.num_new, 0, device=device)
    last = (group.lengths[:, None] + new).repeat(1, num_groups)[..., None]  # (B, G * n, 1)
    is_visible = positions <= last
    if sliding_window is not None:
        is_visible &= positions > last - sliding_window
    is_visible = is_visible.unflatten(2, (-1, span_tokens)).transpose(1, 2)  # (B, S, G * n, K)
    if missing := -is_visible.shape[2] % _QUERY_STEP:
        is_visible = pad(is_visible, (0, 0, 0, missing), value=True)
    mask = torch.zeros(is_visible.shape, dtype=dtype, device=device)
    mask.masked_fill_(~is_visible, -torch.inf)
    return GroupView(
        rows=rows.flatten(),
        num_spans=rows.shape[1],
        span_tokens=span_tokens,
        mask=mask.flatten(0, 1)[:, None],
        is_seen=is_visible.any(dim=-1)[:, :, None],
    )
