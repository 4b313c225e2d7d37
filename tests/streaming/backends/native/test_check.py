"""The check accepts the kernels and rejects wrong ones."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest

from streaming.backends.native.check import check
from tests.streaming.backends.attentions import kernels, kernels_with, spoiling


def test_the_kernels_pass() -> None:
    check(kernels())


def test_kernels_that_do_nothing_fail() -> None:
    with pytest.raises(ValueError, match="the attention kernel has an error of"):
        check(kernels_with(lambda _: None))


def test_a_kernel_that_returns_nan_fails() -> None:
    with pytest.raises(ValueError, match="the attention kernel has an error of nan"):
        check(kernels_with(spoiling(lambda chunk: True, by=nan)))


@pytest.mark.parametrize(
    ("is_spoilt", "num_new"),
    [
        (lambda chunk: chunk.num_tokens == 1 and chunk.length > 1024, 1),
        (lambda chunk: chunk.num_tokens == 1 and 512 < chunk.length < 1024, 1),
        (lambda chunk: chunk.num_tokens == 3 and chunk.length > 512, 3),
        (lambda chunk: chunk.length == 40, 1),
    ],
    ids=["three splits", "two splits", "a chunk", "a short one"],
)
def test_a_kernel_that_is_wrong_for_some_chunks_fails(is_spoilt: Any, num_new: int) -> None:
    with pytest.raises(
        ValueError,
        match=rf"an error of 0\.1 in torch.float32 .* \(8, 2, 16\), {num_new} tokens at a time",
    ):
        check(kernels_with(spoiling(is_spoilt, by=0.1)))
