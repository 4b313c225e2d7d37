"""Check a library of kernels: `python -m streaming.backends.native.check LIBRARY`.

Fails with the reason where it does not give right answers, or with the process where it has
instructions that this CPU lacks.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from streaming.backends.attention.kv_cache import BLOCK_SIZE
from streaming.backends.native.attention import SPLIT_TOKENS, NativeLayout, native_attention
from streaming.backends.native.sampling import native_draw_tokens
from streaming.backends.sampling.sampling import SamplingMetadata, sample_tokens

_LENGTHS = (1, 40, SPLIT_TOKENS + 18, 2 * SPLIT_TOKENS + 6)
_NUM_NEW = (1, 3)
"""New tokens of each sequence: one by itself attends in splits, which are added up afterwards."""
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
                for num_new, error in zip(
                    _NUM_NEW, _errors(kernels, dtype, sizes, window), strict=True
                ):
                    if not error <= max_error:  # NaN is not
                        raise ValueError(
                            f"the kernel is off by {error:.2g} in {dtype} at {sizes}, "
                            f"{num_new} tokens at a time"
                        )
    logits = 3.0 * torch.randn(_NUM_DRAWS, 5000, generator=torch.Generator().manual_seed(0))
    rows = range(_NUM_DRAWS)
    rules = [SamplingMetadata(1.0, 50 * (row % 2), 0.9, 0.001, row / _NUM_DRAWS) for row in rows]
    if native_draw_tokens(kernels, logits, rows, rules) != sample_tokens(logits, rows, rules):
        raise ValueError("the kernel draws other tokens")


def _errors(
    kernels: ctypes.CDLL, dtype: torch.dtype, sizes: tuple[int, int, int], window: int | None
) -> list[float]:
    """Return the largest error of a step over all lengths, for each of `_NUM_NEW`."""
    num_heads, num_kv_heads, dim = sizes
    generator = torch.Generator().manual_seed(0)
    tensors = [
        [
            torch.randn(1, heads, num_tokens, dim, generator=generator).to(dtype)
            for heads, num_tokens in (
                (num_heads, min(length, max(_NUM_NEW))),
                (num_kv_heads, length),
                (num_kv_heads, length),
            )
        ]
        for length in _LENGTHS
    ]
    nums_blocks = [-(-length // BLOCK_SIZE) for length in _LENGTHS]
    first_blocks = [sum(nums_blocks[:number]) for number in range(len(_LENGTHS))]
    slots = [
        first * BLOCK_SIZE + torch.arange(length)
        for first, length in zip(first_blocks, _LENGTHS, strict=True)
    ]
    attention = native_attention(kernels)
    cache = attention.make_cache(sum(nums_blocks), BLOCK_SIZE)
    table = torch.arange(sum(nums_blocks))
    cache.layout = NativeLayout(torch.cat(slots), torch.tensor([]), table)
    expected = [_attend_plainly(query, key, value, window) for query, key, value in tensors]
    _, keys, values = (torch.cat(some, dim=2) for some in zip(*tensors, strict=True))
    keys, values = cache.update(keys, values, 0)
    errors = []
    for most_new in _NUM_NEW:
        nums_new = [min(length, most_new) for length in _LENGTHS]
        chunks = [
            (sum(nums_new[:number]), nums_new[number], length, first_blocks[number])
            for number, length in enumerate(_LENGTHS)
        ]
        layout = NativeLayout(
            torch.cat([own[-new:] for own, new in zip(slots, nums_new, strict=True)]),
            torch.tensor(chunks).flatten(),
            table,
        )
        output, _ = attention.function(
            None,
            torch.cat(
                [query[:, :, -new:] for (query, *_), new in zip(tensors, nums_new, strict=True)],
                dim=2,
            ),
            keys,
            values,
            None,
            batch_layout=layout,
            sliding_window=window,
        )
        difference = output[0].transpose(0, 1) - torch.cat(
            [some[:, -new:] for some, new in zip(expected, nums_new, strict=True)], dim=1
        )
        errors.append(difference.abs().max().item())
    return errors


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
