"""Linear layers with weights packed for the CPU's matrix kernels, and batch-invariant if asked for.

oneDNN has a blocked memory layout of its own for weights. Given plain (out_features, in_features)
weights, it reorders them in each call, which costs more than the product for a few rows: a bfloat16
product of one row reads 14 GB/s of plain weights and 27 GB/s of packed ones (measured on Zen 4).
Here weights are packed once. The operators are those that torch's inductor uses for frozen models.

A library may pick another kernel for another number of rows, which may add in another order and
round differently. For batch invariance, rows are multiplied in tiles of `min_rows` to `TILE_ROWS`
rows; `find_min_rows` has tested that a row gets the same bits in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from streaming.backends.optimization.module_replacement import ModuleReplacement, replace_layers

TILE_ROWS = 64
"""Maximum number of rows in one batch-invariant product."""

_MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest accepted error of a packed product, relative to its largest element. Layers with a larger
error, or of another dtype, are not packed."""
_NUM_CHECKED_ROWS = 3

Multiply = Callable[[torch.Tensor], torch.Tensor]
"""Maps rows, (..., in_features), to (..., out_features)."""


class NotRowInvariant(Exception):
    """The bits of a row's product depend on the row's index, even in a full tile."""


class PackedLinear(ModuleReplacement):
    """A linear layer that replaces a `torch.nn.Linear` or a `Conv1D`.

    Args:
        original: the replaced layer. If `multiply` uses packed weights, they are its weights.
        multiply: computes the product and adds the bias.
        in_features: size of the last dimension of the input.
        min_rows: for batch invariance: fewer rows are padded to this number, and more than
            `TILE_ROWS` are split into tiles. None passes all rows to `multiply` at once.
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
        """Return the product of rows (..., in_features): (..., out_features)."""
        if self.min_rows is None:
            return self._multiply(rows)
        num_rows = rows.numel() // self._in_features
        if self.min_rows <= num_rows <= TILE_ROWS:
            return self._multiply(rows)
        # Full tiles first, then the rest, which is padded if it is shorter than `min_rows`.
        tiles = torch.split(rows.reshape(-1, self._in_features), TILE_ROWS)
        product = torch.cat([self._run_tile(tile, self.min_rows) for tile in tiles])
        return product.view(*rows.shape[:-1], product.shape[-1])

    @torch.inference_mode()
    def restore(self) -> torch.nn.Module:
        """Return the original layer, its weights unpacked to the same bits as before."""
        original: Any = self.original
        if original.weight.is_mkldnn:
            plain = original.weight.to_dense()  # (out_features, in_features)
            # Conv1D stores its weights transposed.
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
    """Replace each linear layer whose weights can be packed by a `PackedLinear`.

    Each layer's plain weights are freed before the next one is packed, unless another layer shares
    them (such as an embedding tied to the output layer).

    Args:
        model: its layers are replaced in place.
        batch_invariant: make the bits of each row independent of the other rows. Then layers that
            cannot be packed are replaced, too.

    Raises:
        NotRowInvariant: `batch_invariant` is set, and a layer cannot be made so.
    """
    # Kernels depend on shape and dtype only, so each kind of layer is tested once.
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
    """Return the smallest number of rows from which a row's bits are the same up to `TILE_ROWS`.

    The order in which a kernel adds does not depend on the numbers, so one set of numbers is enough
    to compare orders. These are chosen to make any difference visible: the first half of each sum
    has random terms and the second half their negatives in another order. The sum is 0, plus 1 if
    `in_features` is odd, but for rounding errors, which depend on the order.

    Args:
        make_multiply: takes weights, (out_features, in_features), and no bias, and returns the
            product to test.
        like: weights with the shape, dtype and device to test.

    Raises:
        NotRowInvariant: the bits depend on a row's index even in a full tile.
    """
    generator = torch.Generator().manual_seed(0)
    num_half = like.shape[1] // 2
    order = torch.randperm(num_half, generator=generator)

    def random(num_rows: int, sign: int) -> torch.Tensor:
        """Return (num_rows, in_features)."""
        half = torch.randn(num_rows, num_half, generator=generator)
        rest = torch.ones(num_rows, like.shape[1] - 2 * num_half)
        return torch.cat([half, sign * half[:, order], rest], dim=1).to(like.device, like.dtype)

    # Negating the second half of the weights only makes its terms the negatives.
    multiply = make_multiply(random(like.shape[0], -1), None)
    rows = random(TILE_ROWS, 1)
    expected = multiply(rows)
    # A row must get the same bits wherever it stands in a full tile.
    if not torch.equal(multiply(rows.flip(0)).flip(0), expected):
        raise NotRowInvariant("the bits of a row's product depend on the row's index")
    # Try ever fewer rows at a time, on all whole parts of the tile, until the bits differ.
    for num_rows in range(TILE_ROWS - 1, 0, -1):
        products = [multiply(part) for part in torch.split(rows, num_rows) if len(part) == num_rows]
        if not torch.equal(torch.cat(products), expected[: len(products) * num_rows]):
            return num_rows + 1
    return 1


class _PackedMultiply:
    """Multiplies by packed weights.

    Args:
        weight: (out_features, in_features). `TILE_ROWS` is the number of rows for which oneDNN
            chooses the layout; products of other numbers of rows use the same layout.
        bias: (out_features,) or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, TILE_ROWS)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self._run(rows, self.weight, self._bias, "none", [], "")
        return product


def _pack(weight: torch.Tensor, bias: torch.Tensor | None) -> _PackedMultiply | None:
    """Return a product with packed weights, or None if there is no kernel or its error is large."""
    if weight.device.type != "cpu" or weight.dtype not in _MAX_ERROR:
        return None
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return None
    # Rows of the weights serve as input: they have the right size and dtype.
    rows = weight[:_NUM_CHECKED_ROWS].contiguous()
    expected = linear(rows, weight, bias)
    try:
        packed = _PackedMultiply(weight, bias)
        difference = (packed(rows) - expected).abs().max()
    except RuntimeError:  # this CPU's oneDNN has no kernel for the dtype
        return None
    is_close = bool(difference <= _MAX_ERROR[weight.dtype] * expected.abs().max())
    return packed if is_close else None


def _weight_of(layer: Any) -> torch.Tensor:
    """Return the weights, (out_features, in_features); Conv1D stores them transposed."""
    weight: torch.Tensor = layer.weight.detach()
    return weight.t() if isinstance(layer, Conv1D) else weight


def _bias_of(layer: Any) -> torch.Tensor | None:
    bias: torch.Tensor | None = layer.bias
    return bias


def _plain_multiply(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    return lambda rows: linear(rows, weight, bias)
