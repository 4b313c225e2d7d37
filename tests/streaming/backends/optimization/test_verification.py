"""What a model shows before it is batched, and what is done when it does not."""

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
    DryRun,
    NotBatchInvariant,
    optimize,
    probe,
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
def test_the_bytes_of_a_token_are_those_of_all_layers(
    name: str, dtype: torch.dtype, width: int
) -> None:
    num_layers, num_kv_heads, head_dim = 3, 2, 16
    expected = 2 * num_layers * num_kv_heads * head_dim * width
    assert probe(make_model(dtype=dtype), attention=attention_named(name)) == expected


def test_a_model_that_the_kernel_cannot_serve_is_told_apart_and_left_alone() -> None:
    model = tiny_models.tiny_llama()  # its heads are of size 8
    own = model.config._attn_implementation
    with pytest.raises(UnsupportedModel, match="must be a multiple of 16"):
        probe(model, attention=attention_named("native"))
    assert model.config._attn_implementation == own
    assert probe(model, attention=TILED_ATTENTION) > 0


@pytest.mark.parametrize("name", BLOCK_SIZES)
def test_a_model_that_copies_its_whole_cache_is_told_apart(name: str) -> None:
    model = tiny_models.random_model(DiffLlamaConfig(**SIZES, head_dim=16))
    own = model.config._attn_implementation
    with pytest.raises(UnsupportedModel, match="they copy it whole"):
        probe(model, attention=attention_named(name))
    assert model.config._attn_implementation == own


def test_a_model_that_answers_a_little_differently_is_told_apart() -> None:
    model = make_model()
    hook = model.lm_head.register_forward_hook(
        lambda *args: args[2] * (1.0 if args[2].shape[1] > 1 else 1.01)
    )
    with pytest.raises(UnsupportedModel, match="answers differently"):
        probe(model, attention=TILED_ATTENTION)
    hook.remove()


def test_a_model_that_returns_the_logits_of_all_rows_is_told_apart() -> None:
    """In a batch they would be dealt out to the wrong sequences."""
    model = make_model()
    own = model.config._attn_implementation
    hook = model.register_forward_pre_hook(
        lambda _, args, named: (args, named | {"logits_to_keep": 0}), with_kwargs=True
    )
    with pytest.raises(UnsupportedModel, match="seems to ignore `logits_to_keep`"):
        probe(model, attention=TILED_ATTENTION)
    assert model.config._attn_implementation == own
    hook.remove()
    assert probe(model, attention=TILED_ATTENTION) > 0


def layer_types(model: Any) -> set[type]:
    return {type(module) for module in model.modules()}


@torch.inference_mode()
def test_layers_are_replaced_and_the_answer_stays() -> None:
    model = make_model()
    attention = attention_named("native")
    probe(model, attention=attention)
    expected = DryRun(model, attention, [30]).read(0)
    optimize(model, attention=attention, kernels=kernels(), batch_invariant=False)
    assert {NativeRMSNorm, PackedLinear} <= layer_types(model)
    torch.testing.assert_close(
        DryRun(model, attention, [30]).read(0), expected, rtol=1e-3, atol=1e-3
    )


def test_without_kernels_norms_stay() -> None:
    model = make_model()
    probe(model, attention=TILED_ATTENTION)
    optimize(model, attention=TILED_ATTENTION, kernels=None, batch_invariant=False)
    assert NativeRMSNorm not in layer_types(model)
    assert PackedLinear in layer_types(model)


def break_when_packed(model: Any) -> None:
    """Let a layer answer otherwise once its projection is a stand-in."""
    layer = model.model.layers[0].mlp

    def change(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (3.0 if isinstance(layer.down_proj, PackedLinear) else 1.0)

    layer.register_forward_hook(change)


def test_layers_that_change_the_answer_are_given_back(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    probe(model, attention=TILED_ATTENTION)
    break_when_packed(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING, logger="streaming"):
        optimize(model, attention=TILED_ATTENTION, kernels=None, batch_invariant=False)
    assert PackedLinear not in layer_types(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert [record.getMessage() for record in caplog.records] == [
        "its layers stay as they are, which costs some speed: it answers differently"
    ]


def test_invariance_is_refused_where_layers_cannot_be_replaced() -> None:
    model = make_model()
    probe(model, attention=TILED_ATTENTION)
    break_when_packed(model)
    with pytest.raises(NotBatchInvariant, match="its layers cannot be replaced"):
        optimize(model, attention=TILED_ATTENTION, kernels=None, batch_invariant=True)


@pytest.mark.parametrize(
    ("is_in_company", "reason"),
    [
        (lambda rows: rows.shape[1] > 30, "are read differently|is decoded differently"),
        (lambda rows: rows.shape[1] == 36, "is decoded differently in a crowd"),
    ],
)
def test_a_model_that_minds_its_company_is_not_invariant(is_in_company: Any, reason: str) -> None:
    model = make_model()
    probe(model, attention=TILED_ATTENTION)
    model.model.norm.register_forward_hook(
        lambda *args: args[2] * (1.0 + 1e-6 if is_in_company(args[2]) else 1.0)
    )
    with pytest.raises(NotBatchInvariant, match=reason):
        optimize(model, attention=TILED_ATTENTION, kernels=None, batch_invariant=True)


@pytest.mark.parametrize(
    ("is_spoilt", "reason"),
    [
        (lambda chunk: chunk.num_tokens == 1 and chunk.length > 512, "token 532 .* by itself"),
        (lambda chunk: chunk.num_tokens == 1 and chunk.length > 1024, "token 1029 .* by itself"),
        (
            lambda chunk: chunk.num_tokens == 1 and chunk.length > 512 and chunk.start > 3,
            "in a crowd",
        ),
    ],
    ids=["two splits", "three splits", "beside others"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_decodes_late_tokens_otherwise_is_not_invariant(
    is_spoilt: Any, reason: str, dtype: torch.dtype
) -> None:
    """Decodes of many keys are computed in splits, as no chunk is."""
    model = make_model(dtype=dtype, max_position_embeddings=1100)
    attention = native_attention(kernels_with(spoiling(is_spoilt, by=0.1)))
    probe(model, attention=attention)
    with pytest.raises(NotBatchInvariant, match=reason):
        optimize(model, attention=attention, kernels=kernels(), batch_invariant=True)


@pytest.mark.parametrize("max_position_embeddings", [2, 84, 531, 532, 1100])
@pytest.mark.parametrize("name", BLOCK_SIZES)
def test_the_proof_keeps_within_the_context(name: str, max_position_embeddings: int) -> None:
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
