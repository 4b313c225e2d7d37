"""Attention over a paged cache, plugged into unmodified Hugging Face models.

All tokens of a step lie in one row, `(1, num_tokens)`: first one token for each decoding sequence,
then the prefill chunks one behind the other. Linear layers do not care; attention does, and learns
from a `BatchLayout` which rows belong together and where their keys and values lie.

Shapes: B decoding sequences, T tokens, Hq query heads, Hkv key-value heads, G = Hq / Hkv queries to
a key-value head, L cached tokens, D head size. Query heads of one key-value head are folded into
the query length, so keys and values are never copied for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

ATTENTION_NAME = "tokenwire_paged"
LAYOUT_ARGUMENT = "batch_layout"


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """Rows `start` to `end` (half-open) of the step: one chunk of one sequence.

    Attributes:
        slots: (L,) places of all tokens of the sequence, the chunk's own included and last.
    """

    start: int
    end: int
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Where the tokens of one step come from and where they go.

    Attributes:
        slots: (T,) place in the cache of each new token: block * block_size + offset.
        num_decodes: B; row i of the step belongs to decoding sequence i for i < B.
        decode_blocks: (B, max_blocks) block tables, padded with a block of the same sequence.
        decode_lengths: (B,) cached tokens, the new one included.
        prefills: the chunks behind the decodes.
        fresh_blocks: those that this step begins and does not fill. They are wiped: whoever had
            them before may have left a NaN, which spoils a sum even where it is masked.
    """

    slots: torch.Tensor
    num_decodes: int
    decode_blocks: torch.Tensor
    decode_lengths: torch.Tensor
    prefills: tuple[PrefillRows, ...]
    fresh_blocks: torch.Tensor


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
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layout: BatchLayout | None = None
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's keys and values, each (1, Hkv, T, D), to their places.

        Returns the whole cache of the layer, each (num_blocks, block_size, Hkv, D): that is what
        the attention function is then called with.
        """
        assert self.layout is not None
        if layer_idx not in self.keys:
            self.keys[layer_idx] = self._make(keys)
            self.values[layer_idx] = self._make(values)
        for cache, new in ((self.keys[layer_idx], keys), (self.values[layer_idx], values)):
            if self.layout.fresh_blocks.numel():
                cache[self.layout.fresh_blocks] = 0
            cache.view(-1, *cache.shape[2:])[self.layout.slots] = new[0].transpose(0, 1)
        return self.keys[layer_idx], self.values[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are given with each step, never derived from the cache."""
        return 0

    def _make(self, like: torch.Tensor) -> torch.Tensor:
        _, num_heads, _, head_dim = like.shape
        # Not zeroed: on a CPU, memory that is never written is never taken. What is read before it
        # is written lies in fresh blocks, and those are wiped.
        return like.new_empty(self.num_blocks, self.block_size, num_heads, head_dim)


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
        key, value: (num_blocks, block_size, Hkv, D), as `PagedCache.update` returned them.
        sliding_window: a token sees at most so many, itself included.

    Returns:
        (1, T, Hq, D), and no weights.
    """
    if attention_mask is not None or softcap is not None:
        raise NotImplementedError("the paged attention takes no mask and no soft cap")
    num_tokens = query.shape[2]
    output = query.new_empty(1, num_tokens, query.shape[1], value.shape[-1])
    rows = query[0].transpose(0, 1)  # (T, Hq, D)
    if batch_layout.num_decodes:
        end = batch_layout.num_decodes
        output[0, :end] = _decode(rows[:end], key, value, batch_layout, scaling, sliding_window)
    for chunk in batch_layout.prefills:
        output[0, chunk.start : chunk.end] = _prefill(
            rows[chunk.start : chunk.end], key, value, chunk, scaling, sliding_window
        )
    return output, None


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: BatchLayout,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend one query of each of B sequences, (B, Hq, D), to padded copies of their caches."""
    num_seqs, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[2]
    blocks = layout.decode_blocks
    keys = key[blocks].flatten(1, 2).transpose(1, 2)  # (B, Hkv, L, D)
    values = value[blocks].flatten(1, 2).transpose(1, 2)
    positions = torch.arange(keys.shape[2], device=query.device)
    lengths = layout.decode_lengths[:, None]
    visible = positions < lengths
    if sliding_window is not None:
        visible &= positions >= lengths - sliding_window
    folded = query.view(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_dim)
    attended = scaled_dot_product_attention(
        folded, keys, values, attn_mask=visible[:, None, None, :], scale=scaling
    )
    return attended.reshape(num_seqs, num_heads, -1)


def _prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    chunk: PrefillRows,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend the queries of one chunk, (n, Hq, D), to all L tokens of its sequence so far."""
    num_new, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[2]
    num_groups = num_heads // num_kv_heads
    keys = key.view(-1, *key.shape[2:])[chunk.slots].transpose(0, 1)[None]  # (1, Hkv, L, D)
    values = value.view(-1, *value.shape[2:])[chunk.slots].transpose(0, 1)[None]
    num_tokens = keys.shape[2]
    last = torch.arange(num_tokens - num_new, num_tokens, device=query.device)[:, None]
    positions = torch.arange(num_tokens, device=query.device)
    visible = positions <= last  # (n, L)
    if sliding_window is not None:
        visible &= positions > last - sliding_window
    # (n, Hkv, G, D) -> (1, Hkv, G * n, D)
    folded = query.view(num_new, num_kv_heads, num_groups, head_dim).permute(1, 2, 0, 3)
    attended = scaled_dot_product_attention(
        folded.reshape(1, num_kv_heads, num_groups * num_new, head_dim),
        keys,
        values,
        attn_mask=visible.repeat(num_groups, 1),
        scale=scaling,
    )
    attended = attended.view(num_kv_heads, num_groups, num_new, -1).permute(2, 0, 1, 3)
    return attended.reshape(num_new, num_heads, -1)
