"""Check a library of kernels: `python -m streaming.backends.native.check LIBRARY`.

`library` runs this in a process of its own after each compilation. It exits with an error if a
kernel returns wrong results, and is killed if the library has instructions that this CPU lacks.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from streaming.backends.attention.kv_cache import BLOCK_SIZE
from streaming.backends.native.attention import (
    KV_SPLIT_TOKENS,
    NativeAttentionMetadata,
    native_attention,
)
from streaming.backends.native.sampling import native_sample_tokens
from streaming.backends.sampling.sampling import SamplingMetadata, sample_tokens

_LENGTHS = (1, 40, KV_SPLIT_TOKENS + 18, 2 * KV_SPLIT_TOKENS + 6)
"""Tokens of each sequence: some have one KV split, some two or three."""
_NUM_NEW = (1, 3)
"""New tokens of each sequence. The kernel runs the splits of a single one in parallel."""
_SIZES = ((8, 2, 16), (9, 3, 64), (2, 2, 80))
"""Query heads, key-value heads and head size."""
_NUM_SAMPLED = 8
_MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest accepted absolute error of attention over standard normal numbers."""


def check(kernels: ctypes.CDLL) -> None:
    """Compare attention with its formula and sampling with `sample_tokens`.

    RMS norms are checked against the model's own layers when they are replaced.

    Raises:
        ValueError: a result is wrong.
    """
    for dtype, max_error in _MAX_ERROR.items():
        for sizes in _SIZES:
            for window in (None, 50):
                for num_new, error in zip(
                    _NUM_NEW, _errors(kernels, dtype, sizes, window), strict=True
                ):
                    if not error <= max_error:  # NaN fails, too
                        raise ValueError(
                            f"the attention kernel has an error of {error:.2g} in {dtype} "
                            f"with heads and head size {sizes}, {num_new} tokens at a time"
                        )
    logits = 3.0 * torch.randn(_NUM_SAMPLED, 5000, generator=torch.Generator().manual_seed(0))
    rows = range(_NUM_SAMPLED)
    metadata = [
        SamplingMetadata(1.0, 50 * (row % 2), 0.9, 0.001, row / _NUM_SAMPLED) for row in rows
    ]
    expected = sample_tokens(logits, rows, metadata)
    if native_sample_tokens(kernels, logits, rows, metadata) != expected:
        raise ValueError("the sampling kernel returns other tokens than torch")


def _errors(
    kernels: ctypes.CDLL, dtype: torch.dtype, sizes: tuple[int, int, int], window: int | None
) -> list[float]:
    """Return the largest absolute error in a step of all sequences, for each of `_NUM_NEW`."""
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
    # Sequences take consecutive blocks, so one table, 0 1 2 ..., serves all of them.
    nums_blocks = [-(-length // BLOCK_SIZE) for length in _LENGTHS]
    first_blocks = [sum(nums_blocks[:number]) for number in range(len(_LENGTHS))]
    slots = [
        first * BLOCK_SIZE + torch.arange(length)
        for first, length in zip(first_blocks, _LENGTHS, strict=True)
    ]
    attention = native_attention(kernels)
    cache = attention.make_cache(sum(nums_blocks), BLOCK_SIZE)
    table = torch.arange(sum(nums_blocks))
    cache.metadata = NativeAttentionMetadata(torch.cat(slots), torch.tensor([]), table)
    expected = [_attend_by_formula(query, key, value, window) for query, key, value in tensors]
    _, keys, values = (torch.cat(some, dim=2) for some in zip(*tensors, strict=True))
    keys, values = cache.update(keys, values, 0)
    errors = []
    for max_new in _NUM_NEW:
        nums_new = [min(length, max_new) for length in _LENGTHS]
        # All keys and values are in the cache; the last tokens of each sequence attend to them.
        chunks = [
            (sum(nums_new[:number]), nums_new[number], length, first_blocks[number])
            for number, length in enumerate(_LENGTHS)
        ]
        metadata = NativeAttentionMetadata(
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
            attention_metadata=metadata,
            sliding_window=window,
        )
        difference = output[0].transpose(0, 1) - torch.cat(
            [some[:, -new:] for some, new in zip(expected, nums_new, strict=True)], dim=1
        )
        errors.append(difference.abs().max().item())
    return errors


def _attend_by_formula(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Attend from the last n of L tokens in double precision.

    Args:
        query: (1, Hq, n, D).
        key: (1, Hkv, L, D).
        value: (1, Hkv, L, D).
        window: number of tokens that a token sees, itself included; None for all.

    Returns:
        (Hq, n, D).
    """
    queries_per_kv, length, num_new = query.shape[1] // key.shape[1], key.shape[2], query.shape[2]
    keys, values = (t[0].double().repeat_interleave(queries_per_kv, dim=0) for t in (key, value))
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
