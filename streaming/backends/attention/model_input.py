"""Prepares a batch as the tensors of one forward pass; called by the batched runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from streaming.backend import Batch, Chunk
from streaming.backends.attention.kv_cache import PagedKVCache
from streaming.scheduling.padding import ceil_to_bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """The input of one forward pass.

    T is padded by `ceil_to_bucket`. Padding rows have no slot in the cache, and their attention
    output is zero.

    Attributes:
        token_ids: (1, T) int64.
        positions: (1, T) int64.
        logits_rows: int64, rows for which the model computes logits: one for each of `yielding`,
            then the first `len(chunk.scored_ids)` of each of `scored`, then padding. At least one,
            since some models take an empty list for all rows.
        attention_metadata: read by the cache and by the attention function.
        yielding: chunks that yield a token, in the order of their rows.
        scored: chunks of prompts with log probabilities, in the order of their rows.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    logits_rows: torch.Tensor
    attention_metadata: Any
    yielding: tuple[Chunk, ...]
    scored: tuple[Chunk, ...]


def prepare_inputs(batch: Batch, *, cache: PagedKVCache, device: torch.device) -> ModelInput:
    """Return the input of the forward pass that runs a batch."""
    chunks, metadata_values = cache.prepare(batch.chunks)
    yielding_rows: list[int] = []
    scored_rows: list[int] = []
    end = 0
    for chunk in chunks:
        scored_rows += range(end, end + len(chunk.scored_ids))
        end += chunk.num_tokens
        if chunk.yields_token:
            yielding_rows.append(end - 1)
    # One tensor for all integers of the step: creating many small tensors, or copying them to a
    # GPU one by one, costs more time than their contents.
    token_ids, positions, rows, slots, *metadata_tensors = _tensors(
        [
            _padded([token_id for chunk in chunks for token_id in chunk.token_ids]),
            _padded([position for chunk in chunks for position in range(chunk.start, chunk.end)]),
            _padded(yielding_rows + scored_rows or [0]),
            [slot for chunk in chunks for slot in _slots(chunk, cache.block_size)],
            *metadata_values,
        ],
        device,
    )
    return ModelInput(
        token_ids=token_ids[None],
        positions=positions[None],
        logits_rows=rows,
        attention_metadata=cache.build_metadata(chunks, slots, metadata_tensors),
        yielding=tuple(chunk for chunk in chunks if chunk.yields_token),
        scored=tuple(chunk for chunk in chunks if chunk.scored_ids),
    )


def _padded(values: list[int]) -> list[int]:
    """Return the values, padded with zeros to the size of their bucket."""
    return values + [0] * (ceil_to_bucket(len(values)) - len(values))


def _slots(chunk: Chunk, block_size: int) -> list[int]:
    """Return the cache slots of the chunk's tokens: block * block_size + offset."""
    blocks = chunk.block_ids
    return [
        blocks[position // block_size] * block_size + position % block_size
        for position in range(chunk.start, chunk.end)
    ]


def _tensors(lists: list[list[int]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return the lists as int64 tensors, views of one tensor on the device."""
    whole = torch.tensor(
        [value for values in lists for value in values], dtype=torch.long, device=device
    )
    return torch.split(whole, [len(values) for values in lists])
