"""Linear layers whose weights are laid out once for the CPU's matrix kernels.

oneDNN multiplies by weights in an order of its own. Given plain ones it reorders them at each call,
which for a few rows costs more than the product: bfloat16 at one row reads 14 GB/s plain and 27
packed (measured on Zen 4). The kernels are those that torch's inductor calls for a frozen model.

A library picks another kernel for another number of rows, and another kernel may add in another
order. Where a row's bits must not depend on how many there are, rows are run in tiles of numbers
that have been seen to give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from streaming.backends.optimization.module_replacement import ModuleReplacement, replace_layers

TILE_ROWS = 64
"""Most rows that are multiplied at once where their bits must not depend on their number."""

_MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Most that a packed product may be off, relative to its largest element. Others stay plain."""
_NUM_CHECKED_ROWS = 3

Multiply = Callable[[torch.Tensor], torch.Tensor]
"""Takes rows, (..., in_features), and gives (..., out_features)."""


class RowsNotAlike(Exception):
    """The bits of a product depend on where a row stands, whatever the number of rows."""


class PackedLinear(ModuleReplacement):
    """A linear layer.

    Args:
        original: that layer; where `multiply` has packed weights, so has it.
        multiply: its product.
        in_features: columns of what comes in.
        min_rows: fewer rows are padded to so many, and more than `TILE_ROWS` are run in tiles;
            None multiplies all as they come.
    """

    def __init__(
        self,
        original: torch.nn.Module,
        multiply: Multiply,
        *,
        in_features: int,
        min_rows: int | None,
    ) -> None:
        super().__init__(original)
        self._multiply = multiply
        self._in_features = in_features
        self.min_rows = min_rows

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.min_rows is None:
            return self._multiply(rows)
        num_rows = rows.numel() // self._in_features
        if self.min_rows <= num_rows <= TILE_ROWS:
            return self._multiply(rows)
        tiles = torch.split(rows.reshape(-1, self._in_features), TILE_ROWS)
        product = torch.cat([self._run_tile(tile, self.min_rows) for tile in tiles])
        return product.view(*rows.shape[:-1], product.shape[-1])

    @torch.inference_mode()
    def restore(self) -> torch.nn.Module:
        original: Any = self.original
        if original.weight.is_mkldnn:
            plain = original.weight.to_dense()
            if isinstance(original, Conv1D):
                plain = plain.t().contiguous()
            original.weight = torch.nn.Parameter(plain, requires_grad=False)
        return self.original

    def _run_tile(self, tile: torch.Tensor, min_rows: int) -> torch.Tensor:
        if len(tile) >= min_rows:
            return self._multiply(tile)
        return self._multiply(pad(tile, (0, 0, 0, min_rows - len(tile))))[: len(tile)]


@torch.inference_mode()
def pack_linears(model: torch.nn.Module, *, batch_invariant: bool) -> None:
    """Put a `PackedLinear` in the place of each linear layer that gains by it.

    The plain weights are given back as it goes, but for those that others share, such as an
    embedding that is the head, too.

    Args:
        batch_invariant: make the bits of each row independent of the other rows; then layers that
            cannot be packed are replaced, too.

    Raises:
        RowsNotAlike: that is not to be had.
    """
    known_min_rows: dict[tuple[Any, ...], int] = {}

    def pack(layer: Any) -> PackedLinear | None:
        if type(layer) not in (torch.nn.Linear, Conv1D):
            return None
        weight, bias = _weight_of(layer), _bias_of(layer)
        packed = _pack(weight, bias)
        if packed is None and not batch_invariant:
            return None
        min_rows = None
        if batch_invariant:
            make = _plain_multiply if packed is None else _PackedMultiply
            kind = (weight.shape, weight.dtype, packed is None)
            if kind not in known_min_rows:
                known_min_rows[kind] = find_min_rows(make, like=weight)
            min_rows = known_min_rows[kind]
        if packed is not None:
            layer.weight = torch.nn.Parameter(packed.weight, requires_grad=False)
        return PackedLinear(
            layer,
            packed or _plain_multiply(weight, bias),
            in_features=weight.shape[1],
            min_rows=min_rows,
        )

    replace_layers(model, pack)


def find_min_rows(
    make_multiply: Callable[[torch.Tensor, None], Multiply], *, like: torch.Tensor
) -> int:
    """Return the number of rows from which on, up to `TILE_ROWS`, each row has the same bits.

    The order in which a kernel adds does not depend on the numbers, so any show it; these show it
    best. Each product is one half of a random sum and then its negative, in another order: what is
    left is nothing but the rounding of the partial sums.

    Args:
        make_multiply: makes a product from weights, (out_features, in_features).
        like: weights of the same shape and kind.

    Raises:
        RowsNotAlike: not even a row's place in a full tile leaves its bits alone.
    """
    generator = torch.Generator().manual_seed(0)
    num_half = like.shape[1] // 2
    order = torch.randperm(num_half, generator=generator)

    def random(num_rows: int, sign: int) -> torch.Tensor:
        half = torch.randn(num_rows, num_half, generator=generator)
        rest = torch.ones(num_rows, like.shape[1] - 2 * num_half)
        return torch.cat([half, sign * half[:, order], rest], dim=1).to(like.device, like.dtype)

    multiply = make_multiply(random(like.shape[0], -1), None)
    rows = random(TILE_ROWS, 1)
    expected = multiply(rows)
    if not torch.equal(multiply(rows.flip(0)).flip(0), expected):
        raise RowsNotAlike("equal rows have different products within one multiplication")
    for num_rows in range(TILE_ROWS - 1, 0, -1):
        products = [multiply(part) for part in torch.split(rows, num_rows) if len(part) == num_rows]
        if not torch.equal(torch.cat(products), expected[: len(products) * num_rows]):
            return num_rows + 1
    return 1


class _PackedMultiply:
    """Multiplies by packed weights."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, TILE_ROWS)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self._run(rows, self.weight, self._bias, "none", [], "")
        return product


def _pack(weight: torch.Tensor, bias: torch.Tensor | None) -> _PackedMultiply | None:
    """Return the product with packed weights, or None where it cannot be had or is wrong."""
    if weight.device.type != "cpu" or weight.dtype not in _MAX_ERROR:
        return None
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return None
    rows = weight[:_NUM_CHECKED_ROWS].contiguous()
    expected = linear(rows, weight, bias)
    try:
        packed = _PackedMultiply(weight, bias)
        difference = (packed(rows) - expected).abs().max()
    except RuntimeError:  # this CPU's oneDNN has no kernel for the dtype
        return None
    is_right = bool(difference <= _MAX_ERROR[weight.dtype] * expected.abs().max())
    return packed if is_right else None


def _weight_of(layer: Any) -> torch.Tensor:
    """Return the weights, (out_features, in_features)."""
    weight: torch.Tensor = layer.weight.detach()
    return weight.t() if isinstance(layer, Conv1D) else weight


def _bias_of(layer: Any) -> torch.Tensor | None:
    bias: torch.Tensor | None = layer.bias
    return bias


def _plain_multiply(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    return lambda rows: linear(rows, weight, bias)
