"""There are few buckets, and none is much larger than the tokens that it holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streaming.scheduling.padding import ceil_to_bucket, floor_to_bucket


def test_the_buckets():
    sizes = sorted({ceil_to_bucket(num_tokens) for num_tokens in range(1, 513)})
    assert sizes == [
        *range(1, 16),
        *range(16, 32, 2),
        *range(32, 64, 4),
        *range(64, 128, 8),
        *range(128, 513, 16),
    ]


@given(st.integers(1, 10_000))
def test_floor_and_ceil_are_neighbouring_buckets(num_tokens: int):
    below, above = floor_to_bucket(num_tokens), ceil_to_bucket(num_tokens)
    assert below <= num_tokens <= above
    assert ceil_to_bucket(below) == below
    assert ceil_to_bucket(above) == above
    assert (below == above) == (num_tokens in (below, above))
    assert below == above or ceil_to_bucket(below + 1) == above
    assert above - num_tokens <= num_tokens / 8
