"""The context length that batches support, of models with windows, chunks and long embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    Phi3Config,
    PhimoeConfig,
    Qwen2MoeConfig,
)

from streaming.backends.attention.kv_cache import UnsupportedModel
from streaming.backends.attention.tiled_kv_cache import TILED_ATTENTION
from streaming.backends.optimization.context_support import supported_length
from streaming.backends.optimization.verification import VerificationRun
from tests.streaming.backends.test_batched import CONFIGS, SIZES

MAX_LENGTH = 256
LENGTH = 64
LIMITED: dict[str, Callable[[], Any]] = {
    "longrope": lambda: Phi3Config(
        **SIZES,
        original_max_position_embeddings=LENGTH,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [8.0] * 8,
            "original_max_position_embeddings": LENGTH,
        },
    ),
    "chunked attention": lambda: Llama4TextConfig(
        **SIZES,
        head_dim=16,
        attention_chunk_size=LENGTH,
        num_local_experts=2,
        intermediate_size_mlp=128,
        attn_temperature_tuning=False,
    ),
    "queries scaled by row": lambda: Llama4TextConfig(
        **SIZES,
        head_dim=16,
        attention_chunk_size=MAX_LENGTH,
        num_local_experts=2,
        intermediate_size_mlp=128,
        no_rope_layers=[0, 0, 0],
        attn_temperature_tuning=True,
        floor_scale=LENGTH + 1,
        attn_scale=9.0,
    ),
    "a window in the mask only": lambda: PhimoeConfig(
        **SIZES, sliding_window=LENGTH, num_local_experts=2
    ),
    "a window in the masks of some layers": lambda: Qwen2MoeConfig(
        **SIZES,
        use_sliding_window=True,
        sliding_window=LENGTH,
        max_window_layers=1,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
}


def make_model(config: Any) -> Any:
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(config).eval()


def length_of(model: Any) -> int:
    return supported_length(model, MAX_LENGTH, max_batch_tokens=LENGTH)


@pytest.mark.parametrize("name", CONFIGS)
def test_supported_attention_has_no_limit(name: str) -> None:
    model = make_model(CONFIGS[name]())
    own = model.config._attn_implementation
    assert length_of(model) == MAX_LENGTH
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("name", LIMITED)
@torch.inference_mode()
def test_logits_equal_the_models_own_up_to_the_supported_length_only(name: str) -> None:
    model = make_model(LIMITED[name]())
    token_ids = [token_id % 97 for token_id in range(LENGTH + 30)]
    expected = {
        length: model(input_ids=torch.tensor([token_ids[:length]]), use_cache=False).logits[0, -1]
        for length in (LENGTH, LENGTH + 30)
    }
    assert length_of(model) == LENGTH

    TILED_ATTENTION.plug_into(model)
    for length, is_supported in ((LENGTH, True), (LENGTH + 30, False)):
        actual = VerificationRun(model, TILED_ATTENTION, [length]).prefill(0, split_at=length // 2)
        off = (actual - expected[length]).abs().max() / expected[length].std()
        assert (off < 1e-3) == is_supported


def test_queries_scaled_by_row_are_rejected_where_a_batch_has_more_rows() -> None:
    model = make_model(LIMITED["queries scaled by row"]())
    with pytest.raises(UnsupportedModel, match="rows of the batch"):
        supported_length(model, MAX_LENGTH, max_batch_tokens=LENGTH + 1)


def test_attention_with_sinks_is_rejected() -> None:
    config = GptOssConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(UnsupportedModel, match="takes s_aux"):
        length_of(make_model(config))


def test_attention_that_is_not_causal_is_rejected() -> None:
    model = make_model(LlamaConfig(**SIZES))
    model.config.is_causal = False
    with pytest.raises(UnsupportedModel, match="mask is not causal"):
        length_of(model)


def test_a_model_that_raises_is_rejected_and_keeps_its_attention() -> None:
    model = make_model(LlamaConfig(**SIZES))
    own = model.config._attn_implementation
    hook = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(UnsupportedModel, match="cannot be examined"):
        length_of(model)
    hook.remove()
    assert model.config._attn_implementation == own
