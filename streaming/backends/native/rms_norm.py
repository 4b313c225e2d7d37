"""Root mean square normalisation by a kernel of ours, see `rms_norm.cpp`.

Models write it in six operations, each of which goes over all rows: 38 microseconds for 64 rows of
576 where the kernel takes 8 (measured on Zen 4).
"""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any

import torch

from streaming.backends.optimization.module_replacement import ModuleReplacement, replace_layers

_DIM_STEP = 16
"""Rows are multiples of it long: a vector of the widest kind."""
_EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon")
_FORMS = tuple(product((0.0, 1.0), (True, False)))
"""What models add to the weight, as Gemma's are stored less one; and whether they round before the
weight comes in. A model was trained with its own rounding, and says the same only with it."""
_NUM_TRIED_ROWS = 16
_MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Most that the kernel may be off what the layer says, relative to its largest element."""


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

    Args:
        original: that layer.
        weight: (dim,) float32, contiguous.
        rounds_first: round to `dtype` before the weight comes in, too.
        dtype: of its rows.
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
    """Put a `NativeRMSNorm` in the place of each layer that does what it does.

    That is seen by trying: models write the same layer in many ways, and others under its name.
    """

    def stand_in_for(layer: Any) -> NativeRMSNorm | None:
        weight = getattr(layer, "weight", None)
        epsilon = next((vars(layer)[name] for name in _EPSILON_NAMES if name in vars(layer)), None)
        if not type(layer).__name__.endswith("RMSNorm") or epsilon is None or weight is None:
            return None
        if weight.dim() != 1 or len(weight) % _DIM_STEP or weight.dtype not in _MAX_ERROR:
            return None
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(_NUM_TRIED_ROWS, len(weight), generator=generator).to(weight.dtype)
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
        is_right = differences[best].max() <= _MAX_ERROR[weight.dtype] * expected.abs().max()
        return natives[best] if is_right else None

    replace_layers(model, stand_in_for)
