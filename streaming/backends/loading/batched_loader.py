"""Builds the batched backend: loads the model, sizes the KV cache and makes the runner.

A model that cannot be batched runs on the generate backend instead.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from streaming.backend import Backend, ModelInfo
from streaming.backends import OnProgress
from streaming.backends.attention.kv_cache import BLOCK_SIZE, Attention, UnsupportedModel
from streaming.backends.attention.tiled_kv_cache import TILED_ATTENTION
from streaming.backends.batched import BatchedRunner
from streaming.backends.generate import GenerateRunner
from streaming.backends.loading.free_memory import FreeMemory, measure_free_memory
from streaming.backends.loading.kv_cache_size import (
    choose_num_blocks,
    free_device_memory,
    make_memory_check,
)
from streaming.backends.loading.load_failure import as_load_error
from streaming.backends.loading.model_loader import LoadedModel, load_model
from streaming.backends.native.attention import native_attention
from streaming.backends.native.library import KernelsUnavailable, load_kernels
from streaming.backends.native.sampling import native_sample_tokens
from streaming.backends.optimization.context_support import supported_length
from streaming.backends.optimization.verification import NotBatchInvariant, optimize, verify
from streaming.backends.optimization.warm_up import warm_up
from streaming.backends.sampling.sampling import sample_tokens
from streaming.config import BackendName, ModelConfig
from streaming.errors import ModelLoadError

logger = logging.getLogger(__name__)

_MIN_BATCHED_MODEL_LEN = 2048
"""Shortest context, in tokens, to cut a model to for batching. A model that can be batched for
less is more useful with its whole context, one request at a time."""


def load_batched_backend(
    config: ModelConfig,
    *,
    on_progress: OnProgress,
    measure_free_memory: Callable[[], FreeMemory] = measure_free_memory,
) -> Backend:
    """Load the model for continuous batching, or for `generate` if it cannot be batched.

    Args:
        config: the model and its limits.
        on_progress: receives the progress of each stage.
        measure_free_memory: returns the free memory of this process. Unused on a GPU.

    Raises:
        ModelLoadError: the model cannot be served.
    """
    loaded = load_model(config, on_progress=on_progress)
    kernels = _load_kernels(config, loaded.model.device, on_progress)
    on_progress(f"Warming up {loaded.info.model_id}", None)
    with as_load_error(f"{loaded.info.model_id} cannot generate"):
        try:
            max_model_len = _choose_max_model_len(config, loaded)
            attention, bytes_per_token = _choose_attention(loaded.model, kernels)
        except UnsupportedModel as error:
            logger.warning(
                "%s runs one request at a time, on the generate backend: %s",
                loaded.info.model_id,
                error,
            )
            info = replace(loaded.info, backend=BackendName.GENERATE.value)
            runner: BatchedRunner | GenerateRunner = GenerateRunner(loaded.model)
        else:
            info, runner = _make_batched_runner(
                config,
                loaded,
                kernels,
                attention=attention,
                max_model_len=max_model_len,
                bytes_per_token=bytes_per_token,
                measure_free_memory=measure_free_memory,
            )
        try:
            warm_up(runner, info)
        except Exception:
            runner.close()
            raise
    return Backend(info=info, tokenizer=loaded.tokenizer, runner=runner, grammars=loaded.grammars)


def _make_batched_runner(
    config: ModelConfig,
    loaded: LoadedModel,
    kernels: ctypes.CDLL | None,
    *,
    attention: Attention,
    max_model_len: int,
    bytes_per_token: int,
    measure_free_memory: Callable[[], FreeMemory],
) -> tuple[ModelInfo, BatchedRunner]:
    try:
        optimize(
            loaded.model,
            attention=attention,
            kernels=kernels,
            batch_invariant=config.batch_invariant,
        )
    except NotBatchInvariant as error:
        raise ModelLoadError(
            f"{loaded.info.model_id} cannot be batch_invariant here: {error}"
        ) from error
    # Measure after the model is loaded and optimized: the cache shares what is left.
    free = free_device_memory(loaded.model.device, measure_free_memory)
    num_blocks = choose_num_blocks(
        config, free, max_model_len=max_model_len, bytes_per_token=bytes_per_token
    )
    info = replace(
        loaded.info,
        max_model_len=min(max_model_len, num_blocks * BLOCK_SIZE),
        batch_invariant=config.batch_invariant,
        attention=attention.name,
    )
    runner = BatchedRunner(
        loaded.model,
        attention=attention,
        token_sampler=(
            sample_tokens if kernels is None else partial(native_sample_tokens, kernels)
        ),
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        has_free_memory=make_memory_check(
            loaded.model.device,
            measure_free_memory,
            free_bytes=free.num_bytes,
            num_blocks=num_blocks,
            block_bytes=bytes_per_token * BLOCK_SIZE,
        ),
    )
    return info, runner


def _load_kernels(
    config: ModelConfig, device: torch.device, on_progress: OnProgress
) -> ctypes.CDLL | None:
    """Return the native kernels, or None if they are off, unavailable or not for this device."""
    if not config.native_kernels or device.type != "cpu":
        return None
    try:
        return load_kernels(config.cache_dir, on_progress=on_progress)
    except KernelsUnavailable as error:
        logger.warning("the native kernels are not available, torch is slower: %s", error)
        return None


def _choose_max_model_len(config: ModelConfig, loaded: LoadedModel) -> int:
    """Return the context length for batching, in tokens: the model's, or as far as batches support.

    Raises:
        UnsupportedModel: batches do not support the configured length, or too few tokens.
    """
    max_model_len = loaded.info.max_model_len
    length = supported_length(loaded.model, max_model_len, max_batch_tokens=config.max_batch_tokens)
    if length == max_model_len:
        return max_model_len
    reason = f"batches do not support its attention beyond {length} tokens"
    if config.max_model_len is not None or length < _MIN_BATCHED_MODEL_LEN:
        raise UnsupportedModel(reason)
    logger.warning(
        "the context of %s is limited to %d of %d tokens: %s; "
        "set max_model_len=%d to serve all of it on the generate backend",
        loaded.info.model_id,
        length,
        max_model_len,
        reason,
        max_model_len,
    )
    return length


def _choose_attention(model: Any, kernels: ctypes.CDLL | None) -> tuple[Attention, int]:
    """Return the fastest attention that works for the model, and its cache's bytes per token.

    Raises:
        UnsupportedModel: none works.
    """
    if kernels is None:
        return TILED_ATTENTION, verify(model, attention=TILED_ATTENTION)
    attention = native_attention(kernels)
    try:
        return attention, verify(model, attention=attention)
    except UnsupportedModel as error:
        reason = error
    bytes_per_token = verify(model, attention=TILED_ATTENTION)
    logger.info("attention runs in torch, not in the native kernel: %s", reason)
    return TILED_ATTENTION, bytes_per_token
