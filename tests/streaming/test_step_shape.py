"""Steps come in few sizes, and none is much larger than what it holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streaming.step_shape import round_down, round_up


def test_the_sizes():
    sizes = sorted({round_up(num_tokens) for num_tokens in range(1, 513)})
    assert sizes == [
        *range(1, 16),
        *range(16, 32, 2),
        *range(32, 64, 4),
        *range(64, 128, 8),
        *range(128, 513, 16),
    ]


@given(st.integers(1, 10_000))
def test_a_number_lies_between_neighbouring_sizes(num_tokens: int):
    below, above = round_down(num_tokens), round_up(num_tokens)
    assert below <= num_tokens <= above
    assert round_up(below) == below
    assert round_up(above) == above
    assert (below == above) == (num_tokens in (below, above))
    assert below == above or round_up(below + 1) == above
    assert above - num_tokens <= num_tokens / 8
