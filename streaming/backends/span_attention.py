"""Attention over a paged cache in torch's own operations, on any device.

A query attends to its past in spans of `SPAN_TOKENS` keys from the sequence's beginning, each span
by itself; then the spans are added up, first to last, each with its part of the softmax (as flash
decoding does). So a token's place in its sequence fixes the order of all sums: it does not matter
whether it is decoded or read in a chunk, which rows are beside it, or who is how long.

Shapes: B sequences, n new tokens of each, T tokens in the step, Hq query heads, Hkv key-value
heads, G = Hq / Hkv queries to a key-value head, S spans, K = `SPAN_TOKENS` keys in each, D head
size, M = G * n, padded to a multiple of `_QUERY_STEP`. Query heads of one key-value head are folded
into the query length, so keys and values are never copied for them. All sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad

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
_LOWEST = torch.finfo(torch.float32).min
"""Stands in for the best of no scores: minus infinity less itself would be no number."""


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
class SpanLayout:
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


def span_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    batch_layout: SpanLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, each sequence to its own past.

    Args:
        query: (1, Hq, T, D).
        key, value: (num_blocks, Hkv, block_size, D), as `SpanCache.update` returned them.
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


def _slices(size: int, most: int, *, step: int = 1) -> Iterator[slice]:
    """Yield slices of at most `most`, but of at least one `step`, that make up `size`."""
    length = max(1, most // step) * step
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


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
