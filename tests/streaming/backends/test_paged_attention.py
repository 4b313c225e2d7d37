"""Attention over blocks equals attention over the tokens themselves."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from streaming.backends.paged_attention import (
    SPAN_TOKENS,
    BatchLayout,
    PagedCache,
    QueryGroup,
    num_padded_blocks,
    paged_attention,
)
from tests.support import property_test

HEAD_DIM = 8


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend one token after the other, by the formula; (L, heads, D) each, in double precision."""
    num_groups = query.shape[1] // key.shape[1]
    rows = []
    for position in range(query.shape[0]):
        first = 0 if sliding_window is None else max(0, position + 1 - sliding_window)
        heads = []
        for head in range(query.shape[1]):
            keys = key[first : position + 1, head // num_groups].double()
            values = value[first : position + 1, head // num_groups].double()
            weights = torch.softmax(keys @ query[position, head].double() * scaling, dim=0)
            heads.append(weights @ values)
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@dataclass
class Row:
    """One sequence: its tokens' queries, keys and values, each (L, heads, D), and its blocks."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    block_ids: list[int]


class Rig:
    """Sequences over one cache, run in steps; outputs are gathered by sequence."""

    def __init__(
        self,
        lengths: list[int],
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        block_size: int = 4,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        num_blocks = sum(-(-length // block_size) for length in lengths) + 1
        order = torch.randperm(num_blocks, generator=generator).tolist()
        self.block_size = block_size
        self.cache = PagedCache(num_blocks=num_blocks, block_size=block_size)
        self.rows: list[Row] = []
        for length in lengths:
            sizes = [(length, heads, HEAD_DIM) for heads in (num_heads, num_kv_heads, num_kv_heads)]
            blocks = [order.pop() for _ in range(-(-length // block_size))]
            query, key, value = (torch.randn(*size, generator=generator) for size in sizes)
            self.rows.append(Row(query, key, value, blocks))
        self.done = [0] * len(lengths)
        self.outputs: list[list[torch.Tensor]] = [[] for _ in lengths]

    def slots(self, row: Row, start: int, end: int) -> list[int]:
        size = self.block_size
        return [row.block_ids[i // size] * size + i % size for i in range(start, end)]

    def step(
        self,
        chunks: list[tuple[int, int]],
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        layer_idx: int = 0,
    ) -> None:
        """Run chunks of (sequence, number of tokens); those of one token are decodes."""
        chunks = sorted(chunks, key=lambda chunk: chunk[1] > 1)
        spans = [(i, self.done[i], self.done[i] + n) for i, n in chunks]
        decodes = [span for span in spans if span[2] - span[1] == 1]
        groups = [decodes] if decodes else []
        groups += [[span] for span in spans if span[2] - span[1] > 1]
        slots: list[int] = []
        fresh: list[int] = []
        query_groups: list[QueryGroup] = []
        for group in groups:
            start, ends = len(slots), [end for _, _, end in group]
            num_blocks = num_padded_blocks(max(ends), self.block_size)
            tables = []
            for i, first, end in group:
                blocks = self.rows[i].block_ids
                slots += self.slots(self.rows[i], first, end)
                last = end // self.block_size
                if end % self.block_size and last * self.block_size >= first:
                    fresh.append(blocks[last])
                table = blocks[: -(-end // self.block_size)]
                tables.append(table + table[:1] * (num_blocks - len(table)))
            query_groups.append(
                QueryGroup(
                    start=start,
                    num_new=group[0][2] - group[0][1],
                    blocks=torch.tensor(tables),
                    lengths=torch.tensor(ends),
                    min_length=min(ends),
                )
            )
        layout = BatchLayout(
            slots=torch.tensor(slots),
            groups=tuple(query_groups),
            fresh_blocks=torch.tensor(fresh, dtype=torch.long),
        )
        self.cache.layout = layout
        query, key, value = (
            torch.cat(
                [getattr(self.rows[i], name)[start:end] for i, start, end in spans]
            ).transpose(0, 1)[None]
            for name in ("query", "key", "value")
        )
        keys, values = self.cache.update(key, value, layer_idx)
        output, weights = paged_attention(
            torch.nn.Module(),
            query,
            keys,
            values,
            None,
            batch_layout=layout,
            scaling=scaling,
            sliding_window=sliding_window,
        )
        assert weights is None
        at = 0
        for i, start, end in spans:
            self.outputs[i].append(output[0, at : at + end - start])
            at += end - start
            self.done[i] = end

    def check(self, *, scaling: float = HEAD_DIM**-0.5, sliding_window: int | None = None) -> None:
        for row, outputs, done in zip(self.rows, self.outputs, self.done, strict=True):
            if not outputs:
                continue
            expected = plain_attention(
                row.query[:done],
                row.key[:done],
                row.value[:done],
                scaling=scaling,
                sliding_window=sliding_window,
            )
            torch.testing.assert_close(torch.cat(outputs).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("sliding_window", [None, 1, 3, 4, 100])
def test_prefill_then_decodes_equal_plain_attention(
    num_heads: int, num_kv_heads: int, sliding_window: int | None
) -> None:
    rig = Rig([11, 7], num_heads=num_heads, num_kv_heads=num_kv_heads)
    rig.step([(0, 6), (1, 3)], sliding_window=sliding_window)
    for _ in range(4):
        rig.step([(0, 1), (1, 1)], sliding_window=sliding_window)
    rig.check(sliding_window=sliding_window)


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_prompt_may_be_cut_anywhere(cut: int) -> None:
    rig = Rig([13])
    rig.step([(0, cut)])
    rig.step([(0, 13 - cut)])
    rig.check()


def test_a_sequence_of_one_token_attends_to_itself() -> None:
    rig = Rig([1])
    rig.step([(0, 1)])
    torch.testing.assert_close(
        rig.outputs[0][0][0], rig.rows[0].value[0].repeat_interleave(2, dim=0)
    )


def test_scaling_is_taken_as_given() -> None:
    rig = Rig([6])
    rig.step([(0, 5)], scaling=0.25)
    rig.step([(0, 1)], scaling=0.25)
    rig.check(scaling=0.25)


def test_layers_of_different_shapes_have_caches_of_their_own() -> None:
    cache = PagedCache(num_blocks=2, block_size=4)
    cache.layout = BatchLayout(torch.tensor([5]), (), torch.tensor([1]))
    for layer_idx, (num_heads, head_dim) in enumerate([(2, 8), (1, 16)]):
        new = torch.full((1, num_heads, 1, head_dim), 1.0 + layer_idx)
        keys, values = cache.update(new, -new, layer_idx)
        assert keys.shape == values.shape == (2, num_heads, 4, head_dim)
        assert bool((keys[1, :, 1] == 1.0 + layer_idx).all())
        assert float(keys[1].sum()) == -float(values[1].sum()) == new.numel() * (1.0 + layer_idx)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("left", [nan, inf])
def test_what_an_earlier_owner_left_spoils_nothing(left: float) -> None:
    """A masked value has weight 0, and 0 times NaN is NaN: one broken request would hurt others."""
    rig = Rig([10, 3])
    rig.step([(0, 5)])  # makes the tensors
    free = set(range(rig.cache.num_blocks)) - set(rig.rows[0].block_ids[:2])
    for tensor in (rig.cache.keys[0], rig.cache.values[0]):
        tensor[list(free)] = left
    rig.step([(0, 1), (1, 2)])
    for chunks in ([(0, 1), (1, 1)], [(0, 1)], [(0, 1)], [(0, 1)]):
        rig.step(chunks)
    rig.check()


@pytest.mark.parametrize("option", ["attention_mask", "softcap"])
def test_what_is_not_supported_is_refused(option: str) -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    layout = BatchLayout(nothing, (), nothing)
    tensor = torch.zeros(1, 1, 1, 1)
    mask = torch.ones(1, 1) if option == "attention_mask" else None
    with pytest.raises(NotImplementedError):
        paged_attention(
            torch.nn.Module(),
            tensor,
            tensor,
            tensor,
            mask,
            batch_layout=layout,
            softcap=1.0 if option == "softcap" else None,
        )


@property_test
@given(st.data())
def test_any_steps_of_any_crowd_equal_plain_attention(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    window = data.draw(st.sampled_from([None, 2, 5]))
    rig = Rig(
        lengths,
        block_size=data.draw(st.sampled_from([1, 2, 4, 16])),
        num_kv_heads=data.draw(st.sampled_from([1, 2, 4])),
        seed=data.draw(st.integers(0, 1000)),
    )
    while rig.done != lengths:
        left = [(i, length - rig.done[i]) for i, length in enumerate(lengths)]
        chunks = [(i, data.draw(st.integers(0, num_left))) for i, num_left in left if num_left]
        chunks = [(i, num_tokens) for i, num_tokens in chunks if num_tokens]
        rig.step(
            chunks or [next((i, 1) for i, num_left in left if num_left)], sliding_window=window
        )
    rig.check(sliding_window=window)


@pytest.mark.parametrize("sliding_window", [None, 40, 150])
def test_what_is_longer_than_a_span_is_added_up(sliding_window: int | None) -> None:
    rig = Rig([2 * SPAN_TOKENS + 9, SPAN_TOKENS + 1, 5], num_heads=2)
    rig.step([(0, 2 * SPAN_TOKENS), (1, SPAN_TOKENS - 1), (2, 2)], sliding_window=sliding_window)
    for _ in range(2):
        rig.step([(0, 1), (1, 1), (2, 1)], sliding_window=sliding_window)
    rig.check(sliding_window=sliding_window)


def test_a_long_chunk_is_attended_to_piece_by_piece() -> None:
    """More scores, and more results of spans, than are kept at once; no cut shows in the bits."""
    length = 12 * SPAN_TOKENS
    whole, cut = (Rig([length], num_heads=32, num_kv_heads=16, block_size=16) for _ in range(2))
    whole.step([(0, length)])
    for num_tokens in (500, 1, length - 501):
        cut.step([(0, num_tokens)])
    assert torch.equal(whole.outputs[0][0], torch.cat(cut.outputs[0]))
    row = whole.rows[0]
    key, value = (
        tensor.repeat_interleave(2, dim=1).transpose(0, 1) for tensor in (row.key, row.value)
    )
    expected = scaled_dot_product_attention(row.query.transpose(0, 1), key, value, is_causal=True)
    torch.testing.assert_close(whole.outputs[0][0], expected.transpose(0, 1), rtol=1e-4, atol=1e-5)
