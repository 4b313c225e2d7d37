"""The cache of `tiled_attention`: keys and values of all layers, in blocks."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import groupby
from typing import Any

import torch

from streaming.backend import Chunk
from streaming.backends.attention.kv_cache import Attention, LayerTensors
from streaming.backends.attention.tile_layout import SPAN_TOKENS, QueryGroup, TileLayout
from streaming.backends.attention.tiled_attention import tiled_attention

_SHORT_TOKENS = 64
"""Sequences of up to so many tokens are attended to together, then those of up to twice as many,
and so on: one that is long makes the others pay at most double."""


class TiledKVCache(LayerTensors):
    """A `PagedKVCache`, of blocks that make whole spans."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert SPAN_TOKENS % block_size == 0, "a span is made of whole blocks"
        super().__init__(num_blocks, block_size)
        self.layout: TileLayout | None = None

    def arrange(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Return decodes first, the shortest in front, then prefills."""
        chunks = list(chunks)
        decodes = [chunk for chunk in chunks if chunk.is_decode]
        return sorted(decodes, key=_length_class) + [
            chunk for chunk in chunks if not chunk.is_decode
        ]

    def numbers(self, chunks: SequenceOf[Chunk]) -> list[list[int]]:
        return [
            _fresh_blocks(chunks, self.block_size),
            [chunk.end for chunk in chunks],
            *[_tables(group, self.block_size) for group in _groups(chunks)],
        ]

    def make_layout(
        self, chunks: SequenceOf[Chunk], slots: torch.Tensor, numbers: SequenceOf[torch.Tensor]
    ) -> TileLayout:
        fresh_blocks, lengths, *tables = numbers
        groups, start, first = [], 0, 0
        for group, table in zip(_groups(chunks), tables, strict=True):
            groups.append(
                QueryGroup(
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
        return TileLayout(slots=slots, groups=tuple(groups), fresh_blocks=fresh_blocks)

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
        num_tokens = len(self.layout.slots)
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
        # Not zeroed: on a CPU, memory that is never written is never taken. What is read before it
        # is written lies in fresh blocks, and those are wiped.
        return like.new_empty(self.num_blocks, num_heads, self.block_size, head_dim)


SPAN_ATTENTION = Attention(
    name="torch",
    interface_name="tokenwire_spans",
    function=tiled_attention,
    make_cache=TiledKVCache,
)


def _length_class(chunk: Chunk) -> int:
    return ((chunk.end - 1) // _SHORT_TOKENS).bit_length()


def _groups(chunks: SequenceOf[Chunk]) -> list[list[Chunk]]:
    """Return decodes of about one length together, and each prefill by itself."""
    decodes = [chunk for chunk in chunks if chunk.is_decode]
    prefills = [[chunk] for chunk in chunks if not chunk.is_decode]
    return [list(group) for _, group in groupby(decodes, _length_class)] + prefills


def _fresh_blocks(chunks: Iterable[Chunk], block_size: int) -> list[int]:
    """Return the last block of each chunk, where the chunk begins it and does not fill it."""
    return [
        chunk.block_ids[chunk.end // block_size]
        for chunk in chunks
        if chunk.end % block_size and chunk.end // block_size * block_size >= chunk.start
    ]


def _tables(group: list[Chunk], block_size: int) -> list[int]:
    """Return the block tables of a group, one behind the other, padded to whole spans."""
    longest = max(chunk.end for chunk in group)
    num_blocks = -(-longest // SPAN_TOKENS) * SPAN_TOKENS // block_size
    padded: list[int] = []
    for chunk in group:
        # Only blocks that have been begun: what lies in others may be anything.
        begun = chunk.block_ids[: -(-chunk.end // block_size)]
        padded += begun
        padded += begun[:1] * (num_blocks - len(begun))
    return padded
