"""Check a library of kernels: `python -m streaming.backends.native.check LIBRARY`.

Fails with the reason where it does not give right answers, or with the process where it has
instructions that this CPU lacks.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from streaming.backends.draw import DrawRules, draw_tokens
from streaming.backends.native.attention import NativeLayout, native_attention
from streaming.backends.native.draw import native_draw_tokens
from streaming.backends.paged_cache import BLOCK_SIZE

_LENGTHS = (1, 40, 700)
_NUM_NEW = 3
_SIZES = ((8, 2, 16), (9, 3, 64), (2, 2, 80))
"""Query heads, key-value heads and the size of each."""
_NUM_DRAWS = 8
_MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def check(kernels: ctypes.CDLL) -> None:
    """Compare the kernels with the formula and with torch; norms are tried where they are used.

    Raises:
        ValueError: they differ.
    """
    for dtype, max_error in _MAX_ERROR.items():
        for sizes in _SIZES:
            for window in (None, 50):
                if (error := _error(kernels, dtype, sizes, window)) > max_error:
                    raise ValueError(f"the kernel is off by {error:.2g} in {dtype} at {sizes}")
    logits = 3.0 * torch.randn(_NUM_DRAWS, 5000, generator=torch.Generator().manual_seed(0))
    rows = range(_NUM_DRAWS)
    rules = [DrawRules(1.0, 50 * (row % 2), 0.9, 0.001, row / _NUM_DRAWS) for row in rows]
    if native_draw_tokens(kernels, logits, rows, rules) != draw_tokens(logits, rows, rules):
        raise ValueError("the kernel draws other tokens")


def _error(
    kernels: ctypes.CDLL, dtype: torch.dtype, sizes: tuple[int, int, int], window: int | None
) -> float:
    num_heads, num_kv_heads, dim = sizes
    generator = torch.Generator().manual_seed(0)
    attention = native_attention(kernels)
    num_blocks = sum(-(-length // BLOCK_SIZE) for length in _LENGTHS)
    cache = attention.make_cache(num_blocks, BLOCK_SIZE)
    worst, first_block = 0.0, 0
    for length in _LENGTHS:
        key, value, query = (
            torch.randn(1, heads, length, dim, generator=generator).to(dtype)
            for heads in (num_kv_heads, num_kv_heads, num_heads)
        )
        num_new = min(length, _NUM_NEW)
        table = torch.arange(first_block, first_block + -(-length // BLOCK_SIZE))
        first_block += len(table)
        slots = table[0] * BLOCK_SIZE + torch.arange(length)
        cache.layout = NativeLayout(slots, torch.tensor([0, num_new, length, 0]), table)
        keys, values = cache.update(key, value, 0)
        query = query[:, :, -num_new:]
        output, _ = attention.function(
            None, query, keys, values, None, batch_layout=cache.layout, sliding_window=window
        )
        expected = _attend_plainly(query, key, value, window)
        worst = max(worst, (output[0].transpose(0, 1) - expected).abs().max().item())
    return worst


def _attend_plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Return (Hq, n, D) of queries (1, Hq, n, D) to keys and values (1, Hkv, L, D)."""
    num_groups, length, num_new = query.shape[1] // key.shape[1], key.shape[2], query.shape[2]
    keys, values = (t[0].double().repeat_interleave(num_groups, dim=0) for t in (key, value))
    scores = query[0].double() @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
    last = torch.arange(length - num_new, length)[:, None]
    positions = torch.arange(length)
    hidden = positions > last
    if window is not None:
        hidden |= positions <= last - window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.bmm(weights, values)


if __name__ == "__main__":
    check(ctypes.CDLL(sys.argv[1]))
