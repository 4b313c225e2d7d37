"""Of which sizes steps are: few, so that what is made ready for each of them is made seldom.

A library picks a kernel for each size that it meets, a compiler writes one, a GPU records one.
"""

from __future__ import annotations

_SIZES_PER_DOUBLING = 8
_MAX_SPACING = 16


def ceil_to_bucket(num_tokens: int) -> int:
    """Return the smallest size for so many tokens.

    Sizes are all from 1 to 16, then every second to 32, every fourth to 64, and so on; from 128 on
    every sixteenth.
    """
    spacing = _spacing(num_tokens)
    return -(-num_tokens // spacing) * spacing


def floor_to_bucket(num_tokens: int) -> int:
    """Return the largest size that so many tokens fill."""
    spacing = _spacing(num_tokens)
    return num_tokens // spacing * spacing


def _spacing(num_tokens: int) -> int:
    doubling: int = 2 ** ((num_tokens - 1).bit_length() - 1) if num_tokens > 1 else 1
    return min(_MAX_SPACING, max(1, doubling // _SIZES_PER_DOUBLING))
