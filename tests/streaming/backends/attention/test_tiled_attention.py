"""Memory bounds of the tiled attention; its results are tested in `test_kv_cache`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streaming.backends.attention.tiled_kv_cache import TILED_ATTENTION
from streaming.backends.attention.tiled_metadata import (
    KV_TILE_TOKENS,
    SequenceGroup,
    TiledAttentionMetadata,
)
from tests.streaming.backends.attentions import AttentionRig, plain_attention


def test_a_chunk_of_several_work_items_equals_plain_attention() -> None:
    """More scores and per-tile results than are kept at once. Cuts do not affect the bits."""
    length = 12 * KV_TILE_TOKENS
    whole, cut = (
        AttentionRig(TILED_ATTENTION, [length], num_heads=32, num_kv_heads=16, block_size=16)
        for _ in range(2)
    )
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


LONG = 2**15
MAX_ELEMENTS = 2**23
"""Upper bound of any tensor that attention makes: 32 MiB of float32."""


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor returned by any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


@pytest.mark.parametrize("sliding_window", [None, 1000, 20_000, 10**6])
def test_a_chunk_after_a_long_past_takes_bounded_memory(sliding_window: int | None) -> None:
    """A mask of the whole past would take 64 MiB for each of the G query heads."""
    num_new = 512
    rig = AttentionRig(TILED_ATTENTION, [LONG], block_size=16, num_heads=4, num_kv_heads=1)
    rig.step([(0, 1)])  # makes the tensors; the past is then copied into them
    [row] = rig.rows
    for cache, tokens in ((rig.cache.keys[0], row.key), (rig.cache.values[0], row.value)):
        cache[row.block_ids] = tokens.view(-1, 16, 1, rig.head_dim).transpose(1, 2)
    rig.done, rig.outputs = [LONG - num_new], [[]]
    with LargestTensor() as largest:
        rig.step([(0, num_new)], sliding_window=sliding_window)
    assert 0 < largest.num_elements <= MAX_ELEMENTS
    actual = torch.cat(rig.outputs[0]).double()
    for end in (LONG - num_new + 3, LONG):
        expected = plain_attention(
            row.query[end - 3 : end],
            row.key[:end],
            row.value[:end],
            scaling=rig.head_dim**-0.5,
            sliding_window=sliding_window,
        )
        at = end - LONG + num_new
        torch.testing.assert_close(actual[at - 3 : at], expected, rtol=1e-4, atol=1e-5)


def test_many_decodes_with_long_pasts_take_bounded_memory() -> None:
    """Each gets the same bits as alone. All pasts consist of the same few blocks."""
    num_seqs, num_heads, block_size = 20, 4, 16
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, num_heads, num_seqs, 64, generator=generator)
    key, value = (torch.randn(8, num_heads, block_size, 64, generator=generator) for _ in range(2))
    tables = torch.randint(8, (num_seqs, LONG // block_size), generator=generator)
    lengths = LONG - 100 * torch.arange(num_seqs)

    def attend(first: int, end: int) -> torch.Tensor:
        group = SequenceGroup(
            start=0,
            num_new=1,
            blocks=tables[first:end],
            lengths=lengths[first:end],
            min_length=int(lengths[end - 1]),
            max_length=int(lengths[first]),
        )
        metadata = TiledAttentionMetadata(
            slots=torch.arange(end - first), groups=(group,), fresh_blocks=torch.empty(0)
        )
        output, _ = TILED_ATTENTION.function(
            torch.nn.Module(), query[:, :, first:end], key, value, None, attention_metadata=metadata
        )
        return output[0]

    with LargestTensor() as largest:
        together = attend(0, num_seqs)
    assert 0 < largest.num_elements <= MAX_ELEMENTS
    for number in (0, 15, 16, num_seqs - 1):
        assert torch.equal(attend(number, number + 1)[0], together[number])
