"""A batch of chunks as the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import torch

from streaming.backend import Batch, Chunk
from streaming.backends.paged_attention import BatchLayout, QueryGroup, num_padded_blocks
from streaming.backends.prompt_scorer import PromptScorer
from streaming.sequence import Sequence

_SHORT_TOKENS = 64
"""Sequences of up to so many tokens are attended to together, then those of up to twice as many,
and so on: one that is long makes the others pay at most double."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the model is called with.

    Attributes:
        token_ids, positions: (1, T).
        logits_rows: rows whose logits are wanted: one for each of `sequences`, then those of
            `scored`; at least one row, as some models take none for all.
        sequences: those that get a token, in the order of their rows.
        scored: chunks of prompts that are scored, and how many rows of each are wanted.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    logits_rows: torch.Tensor
    layout: BatchLayout
    sequences: tuple[Sequence, ...]
    scored: tuple[tuple[Chunk, int], ...]


def lay_out(batch: Batch, *, block_size: int, device: torch.device) -> Step:
    """Return the step of a batch: decodes first, the shortest in front, then prefills."""
    decodes = sorted((chunk for chunk in batch.chunks if chunk.is_decode), key=_length_class)
    prefills = [chunk for chunk in batch.chunks if not chunk.is_decode]
    groups = [list(group) for _, group in groupby(decodes, _length_class)]
    groups += [[chunk] for chunk in prefills]
    chunks = decodes + prefills

    yielding_rows: list[int] = []
    scored_rows: list[int] = []
    scored: list[tuple[Chunk, int]] = []
    end = 0
    for chunk in chunks:
        if num_wanted := PromptScorer.num_wanted(chunk):
            scored.append((chunk, num_wanted))
            scored_rows += range(end, end + num_wanted)
        end += chunk.num_tokens
        if chunk.yields_token:
            yielding_rows.append(end - 1)
    # All numbers go into one tensor: to make many costs more than what they hold.
    token_ids, positions, slots, fresh_blocks, lengths, rows, *tables = _tensors(
        [
            [token_id for chunk in chunks for token_id in chunk.token_ids],
            [position for chunk in chunks for position in range(chunk.start, chunk.end)],
            [slot for chunk in chunks for slot in _slots(chunk, block_size)],
            _fresh_blocks(chunks, block_size),
            [chunk.end for chunk in chunks],
            yielding_rows + scored_rows or [0],
            *[_tables(group, block_size) for group in groups],
        ],
        device,
    )
    query_groups, start, first = [], 0, 0
    for group, table in zip(groups, tables, strict=True):
        ends = [chunk.end for chunk in group]
        query_groups.append(
            QueryGroup(
                start=start,
                num_new=group[0].num_tokens,
                blocks=table.view(len(group), -1),
                lengths=lengths[first : first + len(group)],
                min_length=min(ends),
            )
        )
        start = query_groups[-1].end
        first += len(group)
    return Step(
        token_ids=token_ids[None],
        positions=positions[None],
        logits_rows=rows,
        layout=BatchLayout(slots=slots, groups=tuple(query_groups), fresh_blocks=fresh_blocks),
        sequences=tuple(chunk.sequence for chunk in chunks if chunk.yields_token),
        scored=tuple(scored),
    )


def _length_class(chunk: Chunk) -> int:
    return ((chunk.end - 1) // _SHORT_TOKENS).bit_length()


def _slots(chunk: Chunk, block_size: int) -> list[int]:
    """Return the places of the chunk's tokens in the cache."""
    blocks = chunk.sequence.block_table.block_ids
    return [
        blocks[position // block_size] * block_size + position % block_size
        for position in range(chunk.start, chunk.end)
    ]


def _fresh_blocks(chunks: Iterable[Chunk], block_size: int) -> list[int]:
    """Return the last block of each chunk, where the chunk begins it and does not fill it."""
    return [
        chunk.sequence.block_table.block_ids[chunk.end // block_size]
        for chunk in chunks
        if chunk.end % block_size and chunk.end // block_size * block_size >= chunk.start
    ]


def _tables(group: list[Chunk], block_size: int) -> list[int]:
    """Return the block tables of a group, one behind the other, padded to the same length."""
    num_blocks = num_padded_blocks(max(chunk.end for chunk in group), block_size)
    padded: list[int] = []
    for chunk in group:
        # Only blocks that have been begun: what lies in others may be anything.
        begun = chunk.sequence.block_table.block_ids[: -(-chunk.end // block_size)]
        padded += begun
        padded += begun[:1] * (num_blocks - len(begun))
    return padded


def _tensors(lists: list[list[int]], device: torch.device) -> tuple[torch.Tensor, ...]:
    whole = torch.tensor(
        [number for numbers in lists for number in numbers], dtype=torch.long, device=device
    )
    return torch.split(whole, [len(numbers) for numbers in lists])
