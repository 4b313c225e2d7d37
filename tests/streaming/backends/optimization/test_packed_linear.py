"""Packed layers return what plain ones return, can be restored, and can be batch-invariant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from streaming.backends.optimization.module_replacement import restore_layers
from streaming.backends.optimization.packed_linear import (
    TILE_ROWS,
    NotRowInvariant,
    PackedLinear,
    find_min_rows,
    pack_linears,
)


def small_model(dtype: torch.dtype) -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(24, 40), torch.nn.Linear(40, 32, bias=False), Conv1D(16, 32)
    ).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_packed_model_returns_what_the_plain_one_returns(
    dtype: torch.dtype, batch_invariant: bool
) -> None:
    model = small_model(dtype)
    rows = torch.randn(1, 2 * TILE_ROWS + 3, 24).to(dtype)
    with torch.inference_mode():
        expected = model(rows)
        pack_linears(model, batch_invariant=batch_invariant)
        actual = model(rows)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_weights_have_the_same_bits(dtype: torch.dtype) -> None:
    model = small_model(dtype)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack_linears(model, batch_invariant=False)
    restore_layers(model)
    actual = model.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    model = small_model(dtype)
    rows = torch.randn(3 * TILE_ROWS, 24).to(dtype)
    with torch.inference_mode():
        pack_linears(model, batch_invariant=True)
        expected = model(rows)
        for num_rows in (1, 2, 3, 7, TILE_ROWS, TILE_ROWS + 1, 2 * TILE_ROWS + 5):
            products = [model(part) for part in torch.split(rows, num_rows)]
            assert torch.equal(torch.cat(products), expected)


def summing_backwards_below(min_rows: int) -> Callable[[torch.Tensor, None], object]:
    """Return a library that picks another kernel for fewer rows: one that sums backwards."""

    def make(weight: torch.Tensor, _: None) -> Callable[[torch.Tensor], torch.Tensor]:
        def multiply(rows: torch.Tensor) -> torch.Tensor:
            columns = list(range(weight.shape[1]))
            total = torch.zeros(len(rows), len(weight))
            for column in columns[::-1] if len(rows) < min_rows else columns:
                total += rows[:, column, None] * weight[:, column]
            return total

        return multiply

    return make


@pytest.mark.parametrize("min_rows", [1, 2, 5, TILE_ROWS])
def test_the_fewest_rows_with_the_same_bits_are_found(min_rows: int) -> None:
    like = torch.zeros(8, 33)
    assert find_min_rows(summing_backwards_below(min_rows), like=like) == min_rows  # type: ignore[arg-type]


def test_few_rows_are_padded_and_many_are_tiled() -> None:
    seen: list[int] = []

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.numel() // 4)
        return linear(rows, torch.eye(4))

    layer = PackedLinear(torch.nn.Identity(), multiply, in_features=4, min_rows=8)
    for num_rows in (3, 8, TILE_ROWS, TILE_ROWS + 2):
        rows = torch.randn(1, num_rows, 4)
        assert torch.equal(layer(rows), rows)
    assert seen == [8, 8, TILE_ROWS, TILE_ROWS, 8]


def test_a_product_that_depends_on_the_index_of_a_row_is_rejected() -> None:
    def make(weight: torch.Tensor, _: None) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda rows: linear(rows, weight) + torch.arange(len(rows))[:, None]

    with pytest.raises(NotRowInvariant, match="depend on the row's index"):
        find_min_rows(make, like=torch.zeros(8, 32))
