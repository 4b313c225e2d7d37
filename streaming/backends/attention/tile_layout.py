"""What of a step attends to what in `tiled_attention`, in which pieces, and what each query sees.

Shapes are named as there: B sequences, n new tokens of each, Hq query heads, Hkv key-value heads,
G = Hq / Hkv, S spans, K = `SPAN_TOKENS` keys in each, M = G * n, padded to a multiple of
`_QUERY_STEP`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

SPAN_TOKENS = 64
"""Keys that are reduced in one go. All products have this many, so that a library takes the same
kernel for them; a short sequence pays for keys that it does not have."""
_QUERY_STEP = 4
"""For fewer queries, libraries take kernels that add up in another order."""
_MAX_SCORES = 2**20
"""About how many scores are computed at a time: four megabytes, which caches hold."""
_MAX_GATHERED_ELEMENTS = 2**23
"""About how many elements of keys, and of values, are copied out of the cache at a time."""
_MAX_PARTIAL_ELEMENTS = 2**23
"""About how many elements of the spans' results are kept at a time, before they are added up."""
_MAX_MASK_ELEMENTS = 2**22
"""Most elements of masks that are kept for the other layers; what is beyond is made for each."""


@dataclass(slots=True)
class QueryGroup:
    """Rows `start` to `start + B * n` of the step, of B sequences with n new tokens each.

    Attributes:
        num_new: n.
        blocks: (B, S * K / block_size) block tables, padded with a block of the same sequence.
        lengths: (B,) cached tokens, the new ones included and last.
        min_length, max_length: the smallest and the largest of them, known without a look.
    """

    start: int
    num_new: int
    blocks: torch.Tensor
    lengths: torch.Tensor
    min_length: int
    max_length: int
    _views: dict[tuple[Any, ...], GroupView] = field(default_factory=dict)

    @property
    def num_seqs(self) -> int:
        return len(self.lengths)

    @property
    def end(self) -> int:
        return self.start + self.num_seqs * self.num_new

    def view(self, cache: torch.Tensor, num_groups: int, sliding_window: int | None) -> GroupView:
        """Return what attention needs to know; layers of one kind share it."""
        num_kv_heads, block_size = cache.shape[1:3]
        key = (num_kv_heads, num_groups, sliding_window)
        if key not in self._views:
            self._views[key] = _view(self, num_kv_heads, block_size, num_groups, sliding_window)
        return self._views[key]


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of what a group computes: some of its B sequences, of their M queries, and S spans.

    Attributes:
        rows: those of the view, of these sequences and spans.
    """

    seqs: slice
    queries: slice
    spans: slice
    rows: torch.Tensor


@dataclass(slots=True)
class GroupView:
    """A group as the layers of one kind see it.

    Attributes:
        rows: (B, S, Hkv, blocks in a span) rows of the cache seen as one for each (block, head).
        last: (B, 1, M, 1) position of the last key that a query sees.
        first_span: number of the first of the S spans, counted from the sequence's beginning.
        whole_spans: those of the S spans, half-open, of which every query sees every key.
        sliding_window: a query sees at most so many keys.
        scratch: room for keys and values, which all layers of the step use one after the other:
            to get new memory for each costs as much as to multiply.
    """

    rows: torch.Tensor
    last: torch.Tensor
    first_span: int
    whole_spans: tuple[int, int]
    sliding_window: int | None
    scratch: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    _pieces: dict[int, list[list[list[Piece]]]] = field(default_factory=dict)
    _masks: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    _num_mask_elements: int = 0

    def pieces(self, head_dim: int) -> list[list[list[Piece]]]:
        """Return what is computed one after the other: by sequences, then queries, then spans.

        So scores and copies of keys are bounded, however long the past is. Where the cuts are makes
        no difference to the result, if those between queries are at multiples of `_QUERY_STEP`.

        Args:
            head_dim: the larger of the sizes of a key and of a value.
        """
        if head_dim not in self._pieces:
            self._pieces[head_dim] = list(self._cut(head_dim))
        return self._pieces[head_dim]

    def _cut(self, head_dim: int) -> Iterator[list[list[Piece]]]:
        num_seqs, num_spans, num_kv_heads, _ = self.rows.shape
        # Of one query, a span's result is as long as a value.
        partial_elements = num_spans * num_kv_heads * head_dim
        most_seqs = _MAX_PARTIAL_ELEMENTS // (partial_elements * _QUERY_STEP)
        for seqs in _slices(num_seqs, most_seqs):
            num_heads = (seqs.stop - seqs.start) * num_kv_heads
            most_queries = min(
                _MAX_PARTIAL_ELEMENTS // (num_heads * num_spans * head_dim),
                _MAX_SCORES // (num_heads * SPAN_TOKENS),
            )
            by_queries = []
            for queries in _slices(self.last.shape[2], most_queries, step=_QUERY_STEP):
                num_rows = num_heads * (queries.stop - queries.start)
                most_spans = min(
                    _MAX_SCORES // (num_rows * SPAN_TOKENS),
                    _MAX_GATHERED_ELEMENTS // (num_heads * SPAN_TOKENS * head_dim),
                )
                by_queries.append(
                    [
                        Piece(seqs, queries, spans, self.rows[seqs, spans])
                        for spans in _slices(num_spans, most_spans)
                    ]
                )
            yield by_queries

    def masks(self, piece: Piece) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield what to add to the scores of a piece, for those of its spans that need it.

        Most do not: of a long past, every query sees every key. So the masks take memory by how
        much is new, and not by how long the past is.

        Yields:
            Spans, counted from the first of the piece, and (B, spans, 1, M, K) float32 of the
            piece's sequences and queries: 0 where a query sees a key and -inf where it does not.
        """
        first, end = piece.spans.start, piece.spans.stop
        whole_first, whole_end = self.whole_spans
        if whole_first >= whole_end:
            parts = [(first, end)]
        else:
            parts = [(first, min(end, whole_first)), (max(first, whole_end), end)]
        for start, stop in parts:
            if start < stop:
                mask = self._mask(piece.seqs, piece.queries, start, stop)
                yield slice(start - first, stop - first), mask

    def _mask(self, seqs: slice, queries: slice, start: int, stop: int) -> torch.Tensor:
        key = (seqs.start, seqs.stop, queries.start, queries.stop, start, stop)
        if (mask := self._masks.get(key)) is not None:
            return mask
        last = self.last[seqs, :, queries]
        spans = torch.arange(self.first_span + start, self.first_span + stop, device=last.device)
        keys = torch.arange(SPAN_TOKENS, device=last.device)
        positions = spans[:, None, None] * SPAN_TOKENS + keys
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
class TileLayout:
    """Where the tokens of one step come from and where they go.

    Attributes:
        slots: (num_tokens,) place in the cache of each new token: block * block_size + offset.
        groups: all rows of the step but those after its tokens, which are nobody's.
        fresh_blocks: those that this step begins and does not fill. They are wiped: whoever had
            them before may have left a NaN, which spoils a sum even where it is masked.
    """

    slots: torch.Tensor
    groups: tuple[QueryGroup, ...]
    fresh_blocks: torch.Tensor
    _rows: dict[int, torch.Tensor] = field(default_factory=dict)

    def rows(self, num_kv_heads: int, block_size: int) -> torch.Tensor:
        """Return the slots as rows, (num_tokens * Hkv,), of a cache with one for (block, head)."""
        if num_kv_heads not in self._rows:
            heads = torch.arange(num_kv_heads, device=self.slots.device)
            blocks, offsets = self.slots[:, None] // block_size, self.slots[:, None] % block_size
            rows = (blocks * num_kv_heads + heads) * block_size + offsets
            self._rows[num_kv_heads] = rows.flatten()
        return self._rows[num_kv_heads]


def _view(
    group: QueryGroup,
    num_kv_heads: int,
    block_size: int,
    num_groups: int,
    sliding_window: int | None,
) -> GroupView:
    num_seqs = group.num_seqs
    first_new = group.min_length - group.num_new  # the earliest position that asks
    # Spans that no query of the group can see are left out; they would add zero.
    first_span, first_whole = 0, 0
    if sliding_window is not None:
        first_span = max(0, first_new + 1 - sliding_window) // SPAN_TOKENS
        first_whole = max(0, -(-(group.max_length - sliding_window) // SPAN_TOKENS) - first_span)
    device = group.blocks.device
    blocks = group.blocks.view(num_seqs, -1, SPAN_TOKENS // block_size)[:, first_span:]
    heads = torch.arange(num_kv_heads, device=device)
    new = torch.arange(-group.num_new, 0, device=device)
    last = (group.lengths[:, None] + new).repeat(1, num_groups)  # (B, G * n)
    if missing := -last.shape[1] % _QUERY_STEP:
        last = torch.cat((last, last[:, -1:].expand(-1, missing)), dim=1)
    return GroupView(
        rows=blocks[:, :, None] * num_kv_heads + heads[:, None],
        last=last[:, None, :, None],
        first_span=first_span,
        whole_spans=(first_whole, (first_new + 1) // SPAN_TOKENS - first_span),
        sliding_window=sliding_window,
    )


def _slices(size: int, most: int, *, step: int = 1) -> Iterator[slice]:
    """Yield slices of at most `most`, but of at least one `step`, that make up `size`."""
    length = max(1, most // step) * step
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))
