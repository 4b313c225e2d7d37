"""Loads a causal language model, its tokenizer and its grammar compiler for a backend.

It also chooses the device, the dtype and the context length. `model_source` finds the folder.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from streaming.backend import GrammarCompiler, ModelInfo, Tokenizer
from streaming.backends import OnProgress
from streaming.backends.chat_templates.chat_template import has_chat_template
from streaming.backends.grammar.grammar_compiler import LlguidanceCompiler
from streaming.backends.loading.checkpoint import Checkpoint, open_checkpoint
from streaming.backends.loading.load_failure import as_load_error
from streaming.backends.loading.model_source import find_model
from streaming.backends.loading.progress import progress_bar, quiet_transformers
from streaming.backends.tokenization.tokenizer import rust_core, wrap_tokenizer
from streaming.config import ModelConfig
from streaming.errors import ModelLoadError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_UNLIMITED_MAX_MODEL_LEN = 8192
"""Default context, in tokens, of a model without a limit, such as a state-space model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """The parts of a backend, without its runner.

    Attributes:
        model: a transformers model on its device, in evaluation mode.
        tokenizer: the engine's view of the model's tokenizer.
        info: properties of the model that clients see.
        grammars: compiles grammars for the tokenizer; None if llguidance cannot read it.
    """

    model: Any
    tokenizer: Tokenizer
    info: ModelInfo
    grammars: GrammarCompiler | None


def load_model(config: ModelConfig, *, on_progress: OnProgress) -> LoadedModel:
    """Find, check and load the model; the cheap checks come first.

    Raises:
        ModelLoadError: the model cannot be served. The message is one line with the reason.
    """
    _check_dtype_name(config.dtype)
    device = choose_device(config.device)
    if config.num_threads is not None:
        if config.num_threads < 1:
            raise ModelLoadError(f"num_threads must be at least 1 (got {config.num_threads})")
        torch.set_num_threads(config.num_threads)
    folder = find_model(config, on_progress=on_progress)
    checkpoint = open_checkpoint(folder.path, allow_pickle=config.allow_pickle)
    text = f"Loading {folder.model_id}"
    on_progress(text, None)
    with (
        quiet_transformers(progress_bar(on_progress, text)),
        as_load_error(f"{folder.model_id} cannot be loaded"),
    ):
        model_config = _load_config(checkpoint, trust_remote_code=config.trust_remote_code)
        max_model_len = _choose_max_model_len(model_config, config.max_model_len)
        # Load the tokenizer before the weights: it fails sooner.
        hf_tokenizer = _load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
        dtype = choose_dtype(config.dtype, device, stored=model_config.dtype)
        model = _load_weights(
            checkpoint, model_config, dtype=dtype, trust_remote_code=config.trust_remote_code
        ).to(device)
        vocab_size = _vocab_size(model)
        tokenizer = wrap_tokenizer(hf_tokenizer, vocab_size=vocab_size)
        eos_token_ids = _eos_token_ids(model, hf_tokenizer, vocab_size)
        grammars = _load_grammars(hf_tokenizer, eos_token_ids, vocab_size)
    info = ModelInfo(
        model_id=folder.model_id,
        backend=config.backend.value,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        max_model_len=max_model_len,
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids,
        has_chat_template=has_chat_template(hf_tokenizer),
    )
    return LoadedModel(model=model, tokenizer=tokenizer, info=info, grammars=grammars)


def choose_device(name: str) -> torch.device:
    """Return the device of a name. "auto" is the first CUDA device, or else the CPU.

    Raises:
        ModelLoadError: the name is unknown or the device is missing.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(_unknown_device(name)) from error
    match device.type:
        case "cpu":
            return torch.device("cpu")
        case "cuda":
            num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (device.index or 0) >= num_devices:
                raise ModelLoadError(
                    f"device {name} not found: torch sees {num_devices} CUDA devices"
                )
            return torch.device("cuda", device.index or 0)
        case "mps":
            if not torch.backends.mps.is_available():
                raise ModelLoadError(f"device {name} not found: torch sees no Apple GPU")
            return device
        case _:
            raise ModelLoadError(_unknown_device(name))


def choose_dtype(name: str, device: torch.device, *, stored: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a name. "auto" is the fastest one for the device.

    On a GPU "auto" is the stored 16-bit dtype, or bfloat16 for wider weights. On a CPU it is
    bfloat16 if the CPU has instructions to multiply it (AVX512_BF16 or AMX), or else float32:
    without them bfloat16 has a third of the speed of float32 (measured with AVX2 on the default
    model: 2.2 against 7.1 tokens/s).

    Args:
        name: "auto" or a key of `DTYPES`.
        device: where the model runs.
        stored: dtype of the weights on disk, if the model's configuration states it.

    Raises:
        ModelLoadError: the name is unknown.
    """
    _check_dtype_name(name)
    if name != "auto":
        return DTYPES[name]
    if device.type != "cpu":
        return stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16
    # Older versions of torch lack `get_capabilities`.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    is_fast = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if is_fast else torch.float32


def _check_dtype_name(name: str) -> None:
    if name != "auto" and name not in DTYPES:
        raise ModelLoadError(f"unknown dtype {name!r}; use auto, {', '.join(DTYPES)}")


def _unknown_device(name: str) -> str:
    return f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps"


def _load_config(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = checkpoint.config.get("model_type")
    runs_own_code = checkpoint.needs_remote_code and trust_remote_code
    if model_type not in CONFIG_MAPPING_NAMES and not runs_own_code:
        if checkpoint.needs_remote_code:
            raise ModelLoadError(
                f"{checkpoint.path} needs its own Python code; "
                "pass --trust-remote-code to run it if you trust its source"
            )
        raise ModelLoadError(
            f"{checkpoint.path}: transformers does not support the model type {model_type!r}"
        )
    config = AutoConfig.from_pretrained(
        checkpoint.path, trust_remote_code=trust_remote_code, local_files_only=True
    )
    if not runs_own_code:
        _check_causal(config)
    return config


def _check_causal(config: Any) -> None:
    """Refuse a model without a causal head, which transformers may load with a random one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    architectures = config.architectures or []
    is_known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    causal_names = set(map(str, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
    has_head = not architectures or any(
        name in causal_names or name.endswith(("ForCausalLM", "LMHeadModel"))
        for name in architectures
    )
    if not is_known or is_encoder or not has_head or getattr(config, "is_encoder_decoder", False):
        name = architectures[0] if architectures else config.model_type
        raise ModelLoadError(f"{name} is not a causal language model")


def _load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    with as_load_error(f"the tokenizer in {checkpoint.path} cannot be loaded"):
        return AutoTokenizer.from_pretrained(
            checkpoint.path, trust_remote_code=trust_remote_code, local_files_only=True
        )


def _load_grammars(
    tokenizer: Any, eos_token_ids: frozenset[int], vocab_size: int
) -> GrammarCompiler | None:
    if (rust := rust_core(tokenizer)) is None:
        logger.warning("response_format and tools are not available: they need a fast tokenizer")
        return None
    try:
        return LlguidanceCompiler(rust, eos_token_ids=eos_token_ids, vocab_size=vocab_size)
    except ValueError as error:
        logger.warning("response_format and tools are not available: %s", error)
        return None


def _load_weights(
    checkpoint: Checkpoint, model_config: Any, *, dtype: torch.dtype, trust_remote_code: bool
) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        config=model_config,
        dtype=dtype,
        use_safetensors=not checkpoint.is_pickle,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        # transformers would initialize them at random and log a warning.
        raise ModelLoadError(
            f"{checkpoint.path} is incomplete: {len(missing)} tensors are missing, "
            f"the first is {missing[0]}"
        )
    return model.eval()


def _vocab_size(model: Any) -> int:
    """Return the number of ids with both an embedding and a logit; padding rows may differ."""
    head = model.get_output_embeddings()
    num_read: int = model.get_input_embeddings().weight.shape[0]
    return num_read if head is None else min(num_read, head.weight.shape[0])


def _choose_max_model_len(model_config: Any, requested: int | None) -> int:
    text_config = model_config.get_text_config(decoder=True)
    limit = next(
        (value for name in _CONTEXT_FIELDS if (value := getattr(text_config, name, None))), None
    )
    if requested is None:
        return limit or _UNLIMITED_MAX_MODEL_LEN
    if requested < 2:
        raise ModelLoadError(f"max_model_len must be at least 2 (got {requested})")
    if limit is not None and requested > limit:
        raise ModelLoadError(
            f"max_model_len {requested} exceeds the model's limit of {limit} tokens"
        )
    return requested


def _eos_token_ids(model: Any, tokenizer: Any, vocab_size: int) -> frozenset[int]:
    found: set[int] = set()
    for eos in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        found |= set(eos) if isinstance(eos, list) else {eos} - {None}
    return frozenset(token_id for token_id in found if token_id < vocab_size)
