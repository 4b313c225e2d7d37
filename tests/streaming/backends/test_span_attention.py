"""What is particular to attention in spans; what it shares with others is in test_paged_cache."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from streaming.backends.span_attention import SPAN_TOKENS
from streaming.backends.span_cache import SPAN_ATTENTION
from tests.streaming.backends.attentions import AttentionRig


def test_a_long_chunk_is_attended_to_piece_by_piece() -> None:
    """More scores, and more results of spans, than are kept at once; no cut shows in the bits."""
    length = 12 * SPAN_TOKENS
    whole, cut = (
        AttentionRig(SPAN_ATTENTION, [length], num_heads=32, num_kv_heads=16, block_size=16)
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
