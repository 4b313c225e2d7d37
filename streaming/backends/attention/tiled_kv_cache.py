"""The paged KV cache of `tiled_attention`, and the attention that consists of both.

Also builds the `TiledAttentionMetadata` of each step: sequences are grouped by number of new tokens
and by length, so that each group is one batched computation.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import groupby
from typing import Any

import torch

from streaming.backend import Chunk
from streaming.backends.attention.kv_cache import Attention, KVCacheBase
from streaming.backends.attention.tiled_attention import tiled_attention
from streaming.backends.attention.tiled_metadata import (
    KV_TILE_TOKENS,
    SequenceGroup,
    TiledAttentionMetadata,
)

_SHORT_TOKENS = 64
"""Decodes with at most this many tokens form the first group, those with up to twice as many the
next, and so on. A group is padded to its longest sequence, so padding at most about doubles the
work of a sequence."""


class TiledKVCache(KVCacheBase):
    """A `PagedKVCache` in plain torch, for any device.

    Keys and values of a layer are each (num_blocks, Hkv, block_size, D).

    Args:
        num_blocks: blocks in the cache.
        block_size: tokens in a block; divides `KV_TILE_TOKENS`.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert KV_TILE_TOKENS % block_size == 0, "a KV tile must consist of whole blocks"
        super().__init__(num_blocks, block_size)
        self.metadata: TiledAttentionMetadata | None = None

    def prepare(self, chunks: Iterable[Chunk]) -> tuple[list[Chunk], list[list[int]]]:
        """Return the chunks in the order of their groups, and the values of their metadata.

        Decodes come first, by length class, then prefills. The values are the fresh blocks, the
        length of each sequence, and the block tables of each group.
        """
        chunks = list(chunks)
        decodes = [chunk for chunk in chunks if chunk.is_decode]
        prefills = [chunk for chunk in chunks if not chunk.is_decode]
        ordered = sorted(decodes, key=_length_class) + prefills
        values = [
            _fresh_blocks(ordered, self.block_size),
            [chunk.end for chunk in ordered],
            *[_tables(group, self.block_size) for group in _groups(ordered)],
        ]
        return ordered, values

    def build_metadata(
        self, chunks: SequenceOf[Chunk], slots: torch.Tensor, values: SequenceOf[torch.Tensor]
    ) -> TiledAttentionMetadata:
        """Return the attention metadata of a step, see `PagedKVCache.build_metadata`."""
        fresh_blocks, lengths, *tables = values
        groups, start, first = [], 0, 0
        for group, table in zip(_groups(chunks), tables, strict=True):
            groups.append(
                SequenceGroup(
                    start=start,
                    num_new=group[0].num_tokens,
                    blocks=table.view(len(group), -1),
                    lengths=lengths[first : first + len(group)],
                    min_length=min(chunk.end for chunk in group),
                    max_length=max(chunk.end for chunk in group),
                )
            )
            start = groups[-1].end
            first += len(group)
        return TiledAttentionMetadata(slots=slots, groups=tuple(groups), fresh_blocks=fresh_blocks)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's keys and values, each (1, Hkv, T, D), to their slots.

        Padding rows are not written.

        Returns:
            The layer's whole keys and values, each (num_blocks, Hkv, block_size, D). The model
            passes them on to the attention function.
        """
        assert self.metadata is not None
        if layer_idx not in self.keys:
            self.keys[layer_idx] = self._make(keys)
            self.values[layer_idx] = self._make(values)
        fresh_blocks = self.metadata.fresh_blocks
        rows = self.metadata.rows(keys.shape[1], self.block_size)
        num_tokens = len(self.metadata.slots)
        # Zero fresh blocks whole, then write tokens: one row of D elements for each token and head.
        for cache, new in ((self.keys[layer_idx], keys), (self.values[layer_idx], values)):
            if fresh_blocks.numel():
                cache.view(self.num_blocks, -1).index_fill_(0, fresh_blocks, 0)
            head_dim = new.shape[-1]
            cache.view(-1, head_dim).index_copy_(
                0, rows, new[0, :, :num_tokens].transpose(0, 1).reshape(-1, head_dim)
            )
        return self.keys[layer_idx], self.values[layer_idx]

    def _make(self, like: torch.Tensor) -> torch.Tensor:
        _, num_heads, _, head_dim = like.shape
        # Not zeroed: an operating system gives out memory only when it is written, so unused blocks
        # of a CPU's cache take none. Slots read before they are written lie in fresh blocks.
        return like.new_empty(self.num_blocks, num_heads, self.block_size, head_dim)


TILED_ATTENTION = Attention(
    name="torch",
    interface_name="tokenwire_tiled",
    function=tiled_attention,
    make_cache=TiledKVCache,
)


def _length_class(chunk: Chunk) -> int:
    """Return 0 for up to `_SHORT_TOKENS` tokens, 1 for up to twice as many, and so on."""
    return ((chunk.end - 1) // _SHORT_TOKENS).bit_length()


def _groups(chunks: SequenceOf[Chunk]) -> list[list[Chunk]]:
    """Return a group for each length class of decodes, then one for each prefill."""
    decodes = [chunk for chunk in chunks if chunk.is_decode]
    prefills = [[chunk] for chunk in chunks if not chunk.is_decode]
    return [list(group) for _, group in groupby(decodes, _length_class)] + prefills


def _fresh_blocks(chunks: Iterable[Chunk], block_size: int) -> list[int]:
    """Return the last block of each chunk that begins this block and does not fill it."""
    return [
        chunk.block_ids[chunk.end // block_size]
        for chunk in chunks
        if chunk.end % block_size and chunk.end // block_size * block_size >= chunk.start
    ]


def _tables(group: list[Chunk], block_size: int) -> list[int]:
    """Return the concatenated block tables of a group, each padded to the same whole KV tiles."""
    longest = max(chunk.end for chunk in group)
    num_blocks = -(-longest // KV_TILE_TOKENS) * KV_TILE_TOKENS // block_size
    padded: list[int] = []
    for chunk in group:
        # Leave out blocks without a token, which may hold NaN. Pad with the first block instead.
        begun = chunk.block_ids[: -(-chunk.end // block_size)]
        padded += begun
        padded += begun[:1] * (num_blocks - len(begun))
    return padded
