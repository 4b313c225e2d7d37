"""Verification of models before they are batched, and the replacement of their layers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DiffLlamaConfig

from streaming.backends.attention.kv_cache import UnsupportedModel
from streaming.backends.attention.tiled_kv_cache import TILED_ATTENTION
from streaming.backends.native.attention import native_attention
from streaming.backends.native.rms_norm import NativeRMSNorm
from streaming.backends.optimization.packed_linear import PackedLinear
from streaming.backends.optimization.verification import (
    NotBatchInvariant,
    VerificationRun,
    optimize,
    verify,
)
from tests.streaming.backends import tiny_models
from tests.streaming.backends.attentions import (
    BLOCK_SIZES,
    attention_named,
    kernels,
    kernels_with,
    spoiling,
)
from tests.streaming.backends.test_batched import CONFIGS, SIZES


def make_model(name: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(7)
    config = CONFIGS[name]()
    config.update(options)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("name", BLOCK_SIZES)
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_per_token_are_the_sum_over_all_layers(
    name: str, dtype: torch.dtype, width: int
) -> None:
    num_layers, num_kv_heads, head_dim = 3, 2, 16
    expected = 2 * num_layers * num_kv_heads * head_dim * width
    assert verify(make_model(dtype=dtype), attention=attention_named(name)) == expected


def test_a_model_with_an_unsupported_head_size_is_rejected_and_keeps_its_attention() -> None:
    model = tiny_models.tiny_llama()  # its heads are of size 8
    own = model.config._attn_implementation
    with pytest.raises(UnsupportedModel, match="must be a multiple of 16"):
        verify(model, attention=attention_named("native"))
    assert model.config._attn_implementation == own
    assert verify(model, attention=TILED_ATTENTION) > 0


@pytest.mark.parametrize("name", BLOCK_SIZES)
def test_a_model_that_copies_the_whole_cache_is_rejected(name: str) -> None:
    model = tiny_models.random_model(DiffLlamaConfig(**SIZES, head_dim=16))
    own = model.config._attn_implementation
    with pytest.raises(UnsupportedModel, match="they copy the whole cache"):
        verify(model, attention=attention_named(name))
    assert model.config._attn_implementation == own


def test_a_model_with_slightly_different_logits_is_rejected() -> None:
    model = make_model()
    hook = model.lm_head.register_forward_hook(
        lambda *args: args[2] * (1.0 if args[2].shape[1] > 1 else 1.01)
    )
    with pytest.raises(UnsupportedModel, match="logits over a paged cache differ"):
        verify(model, attention=TILED_ATTENTION)
    hook.remove()


def test_a_model_that_returns_the_logits_of_all_rows_is_rejected() -> None:
    """In a batch they would be assigned to the wrong sequences."""
    model = make_model()
    own = model.config._attn_implementation
    hook = model.register_forward_pre_hook(
        lambda _, args, named: (args, named | {"logits_to_keep": 0}), with_kwargs=True
    )
    with pytest.raises(UnsupportedModel, match="seems to ignore `logits_to_keep`"):
        verify(model, attention=TILED_ATTENTION)
    assert model.config._attn_implementation == own
    hook.remove()
    assert verify(model, attention=TILED_ATTENTION) > 0


def layer_types(model: Any) -> set[type]:
    return {type(module) for module in model.modules()}


@torch.inference_mode()
def test_replaced_layers_keep_the_logits() -> None:
    model = make_model()
    attention = attention_named("native")
    verify(model, attention=attention)
    expected = VerificationRun(model, attention, [30]).prefill(0)
    optimize(model, attention=attention, kernels=kernels(), batch_invariant=False)
    assert {NativeRMSNorm, PackedLinear} <= layer_types(model)
    torch.testing.assert_close(
        VerificationRun(model, attention, [30]).prefill(0), expected, rtol=1e-3, atol=1e-3
    )


def test_norms_are_kept_without_kernels() -> None:
    model = make_model()
    verify(model, attention=TILED_ATTENTION)
    optimize(model, attention=TILED_ATTENTION, kernels=None, batch_invariant=False)
    assert NativeRMSNorm not in layer_types(model)
    assert PackedLinear in layer_types(model)


def break_when_packed(model: Any) -> None:
    """Change a layer's output as soon as its projection is replaced."""
    layer = model.model.layers[0].mlp

    def change(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (3.0 if isinstance(layer.down_proj, PackedLinear) else 1.0)

    layer.register_forward_hook(change)


def test_layers_that_change_the_logits_are_restored(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    verify(model, attention=TILED_ATTENTION)
    break_when_packed(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING, logger="streaming"):
        optimize(model, attention=TILED_ATTENTION, kernels=None, batch_invariant=False)
    assert PackedLinear not in layer_types(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert [record.getMessage() for record in caplog.records] == [
        "the model's layers cannot be replaced by faster ones: its logits change"
    ]


def test_a_model_with_irreplaceable_layers_is_not_batch_invariant() -> None:
    model = make_model()
    verify(model, attention=TILED_ATTENTION)
    break_when_packed(model)
    with pytest.raises(NotBatchInvariant, match="its layers cannot be replaced"):
        optimize(model, attention=TILED_ATTENTION, kernels=None, batch_invariant=True)


@pytest.mark.parametrize(
    ("is_changed", "reason"),
    [
        (lambda rows: rows.shape[1] > 30, "prefilled in two chunks|is decoded"),
        (lambda rows: rows.shape[1] == 36, "is decoded beside others"),
    ],
)
def test_a_model_whose_logits_depend_on_the_batch_is_not_batch_invariant(
    is_changed: Any, reason: str
) -> None:
    model = make_model()
    verify(model, attention=TILED_ATTENTION)
    model.model.norm.register_forward_hook(
        lambda *args: args[2] * (1.0 + 1e-6 if is_changed(args[2]) else 1.0)
    )
    with pytest.raises(NotBatchInvariant, match=reason):
        optimize(model, attention=TILED_ATTENTION, kernels=None, batch_invariant=True)


@pytest.mark.parametrize(
    ("is_spoilt", "reason"),
    [
        (lambda chunk: chunk.num_tokens == 1 and chunk.length > 512, "token 532 .* alone"),
        (lambda chunk: chunk.num_tokens == 1 and chunk.length > 1024, "token 1029 .* alone"),
        (
            lambda chunk: chunk.num_tokens == 1 and chunk.length > 512 and chunk.start > 3,
            "is decoded beside others",
        ),
    ],
    ids=["two splits", "three splits", "beside others"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_decodes_late_tokens_differently_is_not_batch_invariant(
    is_spoilt: Any, reason: str, dtype: torch.dtype
) -> None:
    """The kernel runs the KV splits of a decode in parallel, but not those of a chunk."""
    model = make_model(dtype=dtype, max_position_embeddings=1100)
    attention = native_attention(kernels_with(spoiling(is_spoilt, by=0.1)))
    verify(model, attention=attention)
    with pytest.raises(NotBatchInvariant, match=reason):
        optimize(model, attention=attention, kernels=kernels(), batch_invariant=True)


@pytest.mark.parametrize("max_position_embeddings", [2, 84, 531, 532, 1100])
@pytest.mark.parametrize("name", BLOCK_SIZES)
def test_verification_stays_within_the_context(name: str, max_position_embeddings: int) -> None:
    seen: list[int] = []
    model = make_model(max_position_embeddings=max_position_embeddings)
    attention = attention_named(name)
    model.register_forward_pre_hook(
        lambda _, __, named: seen.append(int(named["position_ids"].max())), with_kwargs=True
    )
    attention.plug_into(model)
    optimize(
        model,
        attention=attention,
        kernels=kernels() if name == "native" else None,
        batch_invariant=True,
    )
    assert max(seen) == min(1029, max(max_position_embeddings, 24)) - 1
