"""RMS norm layers on CPUs, computed by the kernel in `rms_norm.cpp`.

transformers' models compute an RMS norm in six operations, each of which reads and writes all rows:
38 microseconds for 64 rows of 576, where the kernel takes 8 (measured on Zen 4).
"""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any

import torch

from streaming.backends.optimization.module_replacement import ModuleReplacement, replace_layers

_DIM_STEP = 16
"""Rows must have a multiple of this many elements, the floats in an AVX-512 vector."""
_EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon")
_FORMS = tuple(product((0.0, 1.0), (True, False)))
"""Variants of the layer: (what is added to the stored weight, whether rows are rounded to their
dtype before they are multiplied by the weight). Gemma adds 1. Rounding must match the model, whose
logits would otherwise change."""
_NUM_CHECKED_ROWS = 16
_MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest accepted difference to the original layer, relative to its largest output."""


class _Arguments(ctypes.Structure):
    """`RmsNorm` in `rms_norm.cpp`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("epsilon", ctypes.c_double),
        ("rounds_first", ctypes.c_int64),
        ("is_bfloat16", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
    )


class NativeRMSNorm(ModuleReplacement):
    """An RMS norm over the last dimension.

    Rows of another dtype, length or device than expected are passed to the original layer.

    Args:
        original: the layer that it replaces.
        kernels: as returned by `load_kernels`.
        weight: (dim,) float32, contiguous.
        epsilon: added to the mean of the squares.
        rounds_first: whether rows are rounded to `dtype` before they are multiplied by the weight,
            and not only after.
        dtype: of the rows, float32 or bfloat16.
    """

    def __init__(
        self,
        original: torch.nn.Module,
        kernels: ctypes.CDLL,
        *,
        weight: torch.Tensor,
        epsilon: float,
        rounds_first: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(original)
        self._kernels = kernels
        self._weight = weight
        self._epsilon = epsilon
        self._rounds_first = rounds_first
        self._dtype = dtype

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows, (..., dim), normalised and multiplied by the weight, in the same dtype."""
        dim = len(self._weight)
        if rows.dtype != self._dtype or rows.shape[-1] != dim or not rows.is_cpu:
            normalized: torch.Tensor = self.original(rows)
            return normalized
        rows = rows.contiguous()
        output = torch.empty_like(rows)
        arguments = _Arguments(
            rows.data_ptr(),
            self._weight.data_ptr(),
            output.data_ptr(),
            rows.numel() // dim,
            dim,
            self._epsilon,
            self._rounds_first,
            self._dtype == torch.bfloat16,
            torch.get_num_threads(),
        )
        self._kernels.tokenwire_rms_norm(ctypes.byref(arguments))
        return output


@torch.inference_mode()
def replace_rms_norms(model: torch.nn.Module, kernels: ctypes.CDLL) -> None:
    """Replace each RMS norm of a model by a `NativeRMSNorm` that returns the same.

    transformers has many classes for this layer, and some of the name compute something else. So
    each layer is run on random rows, and replaced if one of the variants matches.
    """

    def replacement_of(layer: Any) -> NativeRMSNorm | None:
        weight = getattr(layer, "weight", None)
        epsilon = next((vars(layer)[name] for name in _EPSILON_NAMES if name in vars(layer)), None)
        if not type(layer).__name__.endswith("RMSNorm") or epsilon is None or weight is None:
            return None
        if weight.dim() != 1 or len(weight) % _DIM_STEP or weight.dtype not in _MAX_ERROR:
            return None
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(_NUM_CHECKED_ROWS, len(weight), generator=generator).to(weight.dtype)
        expected = layer(rows)
        if expected.dtype != rows.dtype:
            return None
        natives = [
            NativeRMSNorm(
                layer,
                kernels,
                weight=(weight.float() + offset).contiguous(),
                epsilon=epsilon,
                rounds_first=rounds_first,
                dtype=weight.dtype,
            )
            for offset, rounds_first in _FORMS
        ]
        differences = [(native(rows) - expected).abs() for native in natives]
        best = min(range(len(natives)), key=lambda form: float(differences[form].mean()))
        is_close = differences[best].max() <= _MAX_ERROR[weight.dtype] * expected.abs().max()
        return natives[best] if is_close else None

    replace_layers(model, replacement_of)
