"""Pads batches to a few sizes, so that compiled steps can be reused.

A library selects a kernel for each size it meets, a compiler generates code for it, and a GPU
captures a CUDA graph. With few sizes, each of them is prepared once and used often.
"""

from __future__ import annotations

_BUCKETS_PER_DOUBLING = 8
_MAX_SPACING = 16


def ceil_to_bucket(num_tokens: int) -> int:
    """Return the smallest bucket that holds `num_tokens` tokens.

    The buckets are all sizes from 1 to 16, every second one up to 32, every fourth up to 64, and
    so on; from 128 on, every sixteenth.
    """
    spacing = _spacing(num_tokens)
    return -(-num_tokens // spacing) * spacing


def floor_to_bucket(num_tokens: int) -> int:
    """Return the largest bucket that `num_tokens` tokens fill completely."""
    spacing = _spacing(num_tokens)
    return num_tokens // spacing * spacing


def _spacing(num_tokens: int) -> int:
    """Return the distance, in tokens, between the buckets next to `num_tokens`."""
    doubling: int = 2 ** ((num_tokens - 1).bit_length() - 1) if num_tokens > 1 else 1
    return min(_MAX_SPACING, max(1, doubling // _BUCKETS_PER_DOUBLING))
