"""Attention metadata of `tiled_attention`: which rows are computed together, in which order.

`TiledAttentionMetadata` describes one step. It consists of `SequenceGroup`s; the `GroupPlan` of a
group holds what depends on the kind of layer (number of heads, sliding window) and is shared by
such layers.

Shapes are named as in `tiled_attention`: B sequences, n new tokens of each, Hq query heads, Hkv
key-value heads, G = Hq / Hkv query heads per key-value head, S KV tiles, K = `KV_TILE_TOKENS` keys
in each, M = G * n, padded to a multiple of `_QUERY_MULTIPLE`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

KV_TILE_TOKENS = 64
"""Keys in a tile. All matrix products have this size, also for shorter sequences, so that a library
always picks the same kernel for it."""
_QUERY_MULTIPLE = 4
"""M is padded to a multiple of this: for fewer rows, libraries pick kernels that add in another
order."""

# Bounds on temporary memory, in elements. A work item exceeds them only if it is of minimal size.
_MAX_SCORES = 2**20
"""Scores computed at a time, about: 4 MiB of float32, which fits in a CPU's cache."""
_MAX_GATHERED_ELEMENTS = 2**23
"""Elements of keys, and as many of values, copied out of the cache at a time, about."""
_MAX_PARTIAL_ELEMENTS = 2**23
"""Elements of per-tile results kept until they are added up, about."""
_MAX_MASK_ELEMENTS = 2**22
"""Elements of masks kept for the next layers. Masks beyond are computed again in each layer."""


@dataclass(slots=True)
class SequenceGroup:
    """B sequences with n new tokens each, computed as one batch.

    Their rows are `start` to `start + B * n` of the step, (B, n), token by token.

    Attributes:
        start: first row of the group.
        num_new: n.
        blocks: (B, S * K / block_size) int64 block tables, each padded with a block of its own
            sequence.
        lengths: (B,) int64 cached tokens of each sequence, the new ones included and last.
        min_length: smallest of `lengths`, as a Python integer: reading it from the tensor would
            wait for the device.
        max_length: largest of `lengths`, likewise.
    """

    start: int
    num_new: int
    blocks: torch.Tensor
    lengths: torch.Tensor
    min_length: int
    max_length: int
    _plans: dict[tuple[Any, ...], GroupPlan] = field(default_factory=dict)

    @property
    def num_seqs(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def end(self) -> int:
        """Row after the last one of the group."""
        return self.start + self.num_seqs * self.num_new

    def plan(
        self, cache: torch.Tensor, queries_per_kv: int, sliding_window: int | None
    ) -> GroupPlan:
        """Return the plan for layers of one kind; they share it.

        Args:
            cache: keys of a layer, (num_blocks, Hkv, block_size, D).
            queries_per_kv: G.
            sliding_window: number of tokens that a token sees, itself included; None for all.
        """
        num_kv_heads, block_size = cache.shape[1:3]
        key = (num_kv_heads, queries_per_kv, sliding_window)
        if key not in self._plans:
            self._plans[key] = _make_plan(
                self, num_kv_heads, block_size, queries_per_kv, sliding_window
            )
        return self._plans[key]


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Part of a group's work: some of its B sequences, M queries and S tiles.

    Attributes:
        seqs: slice of the B sequences.
        queries: slice of the M queries.
        tiles: slice of the S tiles.
        rows: `GroupPlan.rows` of these sequences and tiles.
    """

    seqs: slice
    queries: slice
    tiles: slice
    rows: torch.Tensor


@dataclass(slots=True)
class GroupPlan:
    """What layers of one kind need to attend from a group.

    Attributes:
        rows: (B, S, Hkv, K / block_size) int64 indices of (block_size, D) slabs: of a layer's cache
            seen as (num_blocks * Hkv, block_size * D).
        last: (B, 1, M, 1) int64 position of the last key that a query sees: its own.
        first_tile: index of the first of the S tiles, counted from position 0.
        whole_tiles: half-open range of the S tiles in which every query sees every key.
        sliding_window: number of keys that a query sees; None for all.
        scratch: buffers for gathered keys and values, reused by all layers of the step: allocating
            them again costs as much time as the matrix products.
    """

    rows: torch.Tensor
    last: torch.Tensor
    first_tile: int
    whole_tiles: tuple[int, int]
    sliding_window: int | None
    scratch: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    _work_items: dict[int, list[list[list[WorkItem]]]] = field(default_factory=dict)
    _masks: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    _num_mask_elements: int = 0

    def work_items(self, head_dim: int) -> list[list[list[WorkItem]]]:
        """Return the work items, nested in order of work: by sequences, then queries, then tiles.

        They bound the memory for scores and copied keys, however long the past is. The cuts do not
        affect the result's bits: cuts between queries lie at multiples of `_QUERY_MULTIPLE`.

        Args:
            head_dim: size of a key or of a value, whichever is larger.
        """
        if head_dim not in self._work_items:
            self._work_items[head_dim] = list(self._cut(head_dim))
        return self._work_items[head_dim]

    def _cut(self, head_dim: int) -> Iterator[list[list[WorkItem]]]:
        num_seqs, num_tiles, num_kv_heads, _ = self.rows.shape
        # Results of all tiles are kept until they are added up, one value (head_dim elements) for
        # each query and tile: they limit the number of sequences first, then that of queries.
        partial_elements = num_tiles * num_kv_heads * head_dim
        max_seqs = _MAX_PARTIAL_ELEMENTS // (partial_elements * _QUERY_MULTIPLE)
        for seqs in _slices(num_seqs, max_seqs):
            num_heads = (seqs.stop - seqs.start) * num_kv_heads
            # The scores of one tile limit the number of queries, too.
            max_queries = min(
                _MAX_PARTIAL_ELEMENTS // (num_heads * num_tiles * head_dim),
                _MAX_SCORES // (num_heads * KV_TILE_TOKENS),
            )
            by_queries = []
            for queries in _slices(self.last.shape[2], max_queries, step=_QUERY_MULTIPLE):
                num_rows = num_heads * (queries.stop - queries.start)
                # Scores and gathered keys limit the number of tiles computed in one product.
                max_tiles = min(
                    _MAX_SCORES // (num_rows * KV_TILE_TOKENS),
                    _MAX_GATHERED_ELEMENTS // (num_heads * KV_TILE_TOKENS * head_dim),
                )
                by_queries.append(
                    [
                        WorkItem(seqs, queries, tiles, self.rows[seqs, tiles])
                        for tiles in _slices(num_tiles, max_tiles)
                    ]
                )
            yield by_queries

    def masks(self, item: WorkItem) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield what to add to the scores of a work item, for those of its tiles that need a mask.

        In most tiles of a long past, every query sees every key. So the size of the masks grows
        with the number of new tokens, and not with the length of the past.

        Yields:
            A slice of the item's tiles, and their mask, (B, tiles, 1, M, K) float32 with the item's
            B and M: 0 where a query sees a key and -inf where it does not.
        """
        first, end = item.tiles.start, item.tiles.stop
        whole_first, whole_end = self.whole_tiles
        if whole_first >= whole_end:
            parts = [(first, end)]
        else:
            parts = [(first, min(end, whole_first)), (max(first, whole_end), end)]
        for start, stop in parts:
            if start < stop:
                mask = self._mask(item.seqs, item.queries, start, stop)
                yield slice(start - first, stop - first), mask

    def _mask(self, seqs: slice, queries: slice, start: int, stop: int) -> torch.Tensor:
        key = (seqs.start, seqs.stop, queries.start, queries.stop, start, stop)
        if (mask := self._masks.get(key)) is not None:
            return mask
        last = self.last[seqs, :, queries]  # (B, 1, M, 1)
        tiles = torch.arange(self.first_tile + start, self.first_tile + stop, device=last.device)
        keys = torch.arange(KV_TILE_TOKENS, device=last.device)
        positions = tiles[:, None, None] * KV_TILE_TOKENS + keys  # (tiles, 1, K)
        is_hidden = positions > last
        if self.sliding_window is not None:
            is_hidden |= positions <= last - self.sliding_window
        mask = torch.zeros(is_hidden.shape, device=last.device).masked_fill_(is_hidden, -torch.inf)
        mask = mask[:, :, None]
        if self._num_mask_elements + mask.numel() <= _MAX_MASK_ELEMENTS:
            self._num_mask_elements += mask.numel()
            self._masks[key] = mask
        return mask


@dataclass(frozen=True, slots=True)
class TiledAttentionMetadata:
    """The attention metadata of one step: where its tokens go and what they attend to.

    Attributes:
        slots: (num_tokens,) int64 cache slot of each new token: block * block_size + offset.
        groups: consecutive groups of all rows but the padding rows, which come last.
        fresh_blocks: int64 blocks that this step begins and does not fill. They are zeroed first:
            a NaN left by an earlier sequence would turn sums into NaN even where it is masked, as
            0 * NaN = NaN.
    """

    slots: torch.Tensor
    groups: tuple[SequenceGroup, ...]
    fresh_blocks: torch.Tensor
    _rows: dict[int, torch.Tensor] = field(default_factory=dict)

    def rows(self, num_kv_heads: int, block_size: int) -> torch.Tensor:
        """Return where keys and values are written, in a layer's cache seen as (rows, D).

        Returns:
            (num_tokens * Hkv,) int64, token by token: (block * Hkv + head) * block_size + offset.
        """
        if num_kv_heads not in self._rows:
            heads = torch.arange(num_kv_heads, device=self.slots.device)
            blocks, offsets = self.slots[:, None] // block_size, self.slots[:, None] % block_size
            rows = (blocks * num_kv_heads + heads) * block_size + offsets
            self._rows[num_kv_heads] = rows.flatten()
        return self._rows[num_kv_heads]


def _make_plan(
    group: SequenceGroup,
    num_kv_heads: int,
    block_size: int,
    queries_per_kv: int,
    sliding_window: int | None,
) -> GroupPlan:
    num_seqs = group.num_seqs
    first_new = group.min_length - group.num_new  # smallest position of a query
    # With a window, leave out tiles that no query of the group sees: they would add zero. All
    # queries see a tile whole if it begins within the window of the last position and ends at or
    # before the first one.
    first_tile, first_whole = 0, 0
    if sliding_window is not None:
        first_tile = max(0, first_new + 1 - sliding_window) // KV_TILE_TOKENS
        first_whole = max(0, -(-(group.max_length - sliding_window) // KV_TILE_TOKENS) - first_tile)
    device = group.blocks.device
    blocks = group.blocks.view(num_seqs, -1, KV_TILE_TOKENS // block_size)[:, first_tile:]
    heads = torch.arange(num_kv_heads, device=device)
    new = torch.arange(-group.num_new, 0, device=device)
    # Queries of a key-value head are ordered by query head, then by token.
    last = (group.lengths[:, None] + new).repeat(1, queries_per_kv)  # (B, G * n)
    if missing := -last.shape[1] % _QUERY_MULTIPLE:
        last = torch.cat((last, last[:, -1:].expand(-1, missing)), dim=1)
    return GroupPlan(
        rows=blocks[:, :, None] * num_kv_heads + heads[:, None],
        last=last[:, None, :, None],
        first_tile=first_tile,
        whole_tiles=(first_whole, (first_new + 1) // KV_TILE_TOKENS - first_tile),
        sliding_window=sliding_window,
    )


def _slices(size: int, max_length: int, *, step: int = 1) -> Iterator[slice]:
    """Yield consecutive slices of `size`, each of at most `max_length` rounded down to `step`.

    If `max_length` is less than `step`, slices have length `step`.
    """
    length = max(1, max_length // step) * step
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))
