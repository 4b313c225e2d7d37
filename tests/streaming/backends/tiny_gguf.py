"""A `.gguf` file of a few kilobytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.streaming.backends.tiny_models import ASCII, CHAT_TEMPLATE, SPECIAL_TOKENS

HIDDEN, NUM_HEADS, FEED_FORWARD = 32, 2, 64


def write_gguf(path: Path, *, seed: int = 0) -> Path:
    """Write a Llama of one layer with linear weights quantized to Q8_0."""
    tokens = [*SPECIAL_TOKENS, *ASCII, "Ġ", "he"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    special, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([special if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, shape in _shapes(len(tokens)).items():
        rng = np.random.default_rng([seed, len(name), *shape])
        weights = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", weights)
            continue
        packed = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    attention = {f"blk.0.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
    return {
        "token_embd": (vocab_size, HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.ffn_gate": (FEED_FORWARD, HIDDEN),
        "blk.0.ffn_up": (FEED_FORWARD, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, FEED_FORWARD),
        **attention,
    }
