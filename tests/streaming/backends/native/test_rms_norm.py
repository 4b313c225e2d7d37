"""The kernel returns the results of the models' own norms, and replaces no other layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from streaming.backends.native.rms_norm import NativeRMSNorm, replace_rms_norms
from streaming.backends.optimization.module_replacement import restore_layers
from tests.streaming.backends.attentions import kernels

DTYPES = [torch.float32, torch.bfloat16]


def model_with(layer: torch.nn.Module, dtype: torch.dtype) -> Any:
    with torch.no_grad():
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    return torch.nn.Sequential(layer).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer_class", [LlamaRMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("dim", [16, 64, 576])
@torch.inference_mode()
def test_a_norm_is_replaced_and_returns_the_same(
    layer_class: Any, dim: int, dtype: torch.dtype
) -> None:
    model = model_with(layer_class(dim, eps=1e-3), dtype)
    rows = (0.1 * torch.randn(2, 7, dim, generator=torch.Generator().manual_seed(2))).to(dtype)
    original, expected = model[0], model(rows)
    replace_rms_norms(model, kernels())
    assert isinstance(model[0], NativeRMSNorm)
    actual = model(rows)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected)
    if dtype == torch.bfloat16:
        # It rounds where the layer does, so nearly all are equal; sums of squares differ slightly.
        assert (actual == expected).float().mean() > 0.99
    restore_layers(model)
    assert model[0] is original


@torch.inference_mode()
def test_a_row_depends_neither_on_others_nor_on_strides() -> None:
    model = model_with(LlamaRMSNorm(64), torch.bfloat16)
    replace_rms_norms(model, kernels())
    rows = torch.randn(50, 64).bfloat16()
    expected = model(rows)
    assert torch.equal(torch.cat([model(row[None]) for row in rows]), expected)
    strided = torch.randn(50, 128).bfloat16()
    strided[:, ::2] = rows
    assert torch.equal(model(strided[:, ::2]), expected)


class OtherRMSNorm(LlamaRMSNorm):  # type: ignore[misc]
    """Named like an RMS norm, and computes something else."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        normalized: torch.Tensor = super().forward(rows)
        return normalized - rows.mean()


@pytest.mark.parametrize(
    "layer",
    [
        OtherRMSNorm(32),
        LlamaRMSNorm(24),
        torch.nn.LayerNorm(32),
        torch.nn.Linear(32, 32),
        LlamaRMSNorm(32).half(),
    ],
    ids=["another sum", "an odd size", "a layer norm", "a linear layer", "float16"],
)
def test_other_layers_are_not_replaced(layer: torch.nn.Module) -> None:
    model = torch.nn.Sequential(layer)
    replace_rms_norms(model, kernels())
    assert model[0] is layer


@torch.inference_mode()
def test_rows_of_another_dtype_go_to_the_original() -> None:
    model = model_with(LlamaRMSNorm(16), torch.bfloat16)
    rows = torch.randn(3, 16)
    expected = model(rows)
    replace_rms_norms(model, kernels())
    assert torch.equal(model(rows), expected)


@torch.inference_mode()
def test_rows_of_another_length_go_to_the_original() -> None:
    """The kernel would read two rows of half the length as one."""
    model = model_with(LlamaRMSNorm(32), torch.float32)
    replace_rms_norms(model, kernels())
    assert isinstance(model[0], NativeRMSNorm)
    with pytest.raises(RuntimeError, match="must match the size"):
        model(torch.randn(4, 16))
