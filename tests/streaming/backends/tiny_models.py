"""Models of a few thousand random weights, and their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' and loop.first %}"
    "{{ raise_exception('the first turn is the user\\'s') }}"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ASCII = [chr(code) for code in range(33, 127)]


def rust_tokenizer(alphabet: list[str] | None = None) -> Tokenizer:
    """Return a byte-level tokenizer of an alphabet, by default of all bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet is None else alphabet
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *letters, "he", "hel"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e"), ("he", "l")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def hf_tokenizer(
    rust: Tokenizer | None = None, *, chat_template: str | None = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rust or rust_tokenizer(), eos_token="<|im_end|>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def ascii_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are whole printable characters; Ġ is the space."""
    return hf_tokenizer(rust_tokenizer([*ASCII, "Ġ"]))


def llama_config(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
    )


def gpt2_config(vocab_size: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=128,
        bos_token_id=None,
        eos_token_id=2,
    )


def mamba_config(vocab_size: int) -> MambaConfig:
    return MambaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        state_size=4,
        num_hidden_layers=2,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=None,
    )


def random_model(config: Any) -> Any:
    """Return the same model at each call, its logits far enough apart to rule out ties."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    return model


def tiny_llama() -> Any:
    return random_model(llama_config(len(ascii_tokenizer())))


def save_llama(folder: Path, **save_options: Any) -> Path:
    tokenizer = ascii_tokenizer()
    tokenizer.save_pretrained(folder)
    random_model(llama_config(len(tokenizer))).save_pretrained(folder, **save_options)
    return folder
