"""The default backend: continuous batching over an unmodified Hugging Face model.

One step is one forward pass in which all tokens lie in one row: the newest token of each decoding
sequence and the chunks of the prompts that are still being read. See `paged_cache`.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from streaming.backend import Backend, Batch, CacheGeometry, FailedRow, SampledToken
from streaming.backends import OnProgress
from streaming.backends.attention.forward import forward
from streaming.backends.attention.kv_cache import BLOCK_SIZE, Attention, UnsupportedModel
from streaming.backends.attention.model_input import prepare_inputs
from streaming.backends.attention.tiled_kv_cache import SPAN_ATTENTION
from streaming.backends.generate import GenerateRunner
from streaming.backends.loading.cache_size import choose_num_blocks, free_on, watch_memory
from streaming.backends.loading.load_failure import failing_as
from streaming.backends.loading.memory import FreeMemory, free_memory
from streaming.backends.loading.model_loader import LoadedModel, load_model
from streaming.backends.native.attention import native_attention
from streaming.backends.native.library import NoKernels, load_kernels
from streaming.backends.native.sampling import native_draw_tokens
from streaming.backends.optimization.context_support import known_length
from streaming.backends.optimization.verification import NotBatchInvariant, optimize, probe
from streaming.backends.optimization.warm_up import warm_up
from streaming.backends.sampling.prompt_scorer import PromptScorer
from streaming.backends.sampling.sampler import Sampler
from streaming.backends.sampling.sampling import Draw, sample_tokens
from streaming.config import BackendName, ModelConfig
from streaming.errors import ModelLoadError
from streaming.sequence import Sequence

logger = logging.getLogger(__name__)

_MIN_KNOWN_TOKENS = 2048
"""A context as short as that is worth more whole, one request at a time, than in batches."""


class BatchedRunner:
    """Runs many sequences in one forward pass, over a cache of its own.

    Args:
        model: a transformers model with a language-model head; owned from here on.
        attention: how it attends.
        draw: how tokens are drawn.
        num_blocks: size of the cache.
        block_size: tokens in a block.
        max_num_seqs: most sequences in one batch.
        max_batch_tokens: most tokens in one batch.
        has_free_memory: see `CacheGeometry`.
    """

    def __init__(
        self,
        model: Any,
        *,
        attention: Attention = SPAN_ATTENTION,
        draw: Draw = sample_tokens,
        num_blocks: int,
        block_size: int = BLOCK_SIZE,
        max_num_seqs: int = 64,
        max_batch_tokens: int = 512,
        has_free_memory: Callable[[], bool] = lambda: True,
    ) -> None:
        attention.plug_into(model)
        self._model = model
        self._num_readable_ids: int = model.get_input_embeddings().weight.shape[0]
        self._device: torch.device = model.device
        self._cache = attention.make_cache(num_blocks, block_size)
        self.cache = CacheGeometry(
            num_blocks=num_blocks,
            block_size=block_size,
            max_batch_tokens=max_batch_tokens,
            has_free_memory=has_free_memory,
        )
        self.max_num_seqs = max_num_seqs
        self._prompts = PromptScorer()
        self._sampler = Sampler(draw=draw, max_penalized_seqs=max_num_seqs)

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        step = prepare_inputs(batch, cache=self._cache, device=self._device)
        # A padded head has rows for ids that the model cannot read; they must not be chosen.
        logits = forward(self._model, step, self._cache)[:, : self._num_readable_ids]
        start = len(step.sequences)
        for chunk, num_wanted in step.scored:
            self._prompts.take(chunk, logits[start : start + num_wanted])
            start += num_wanted
        sampled: list[SampledToken | FailedRow] = []
        if step.sequences:
            sampled = self._sampler.sample(logits[: len(step.sequences)], step.sequences)
        by_sequence = dict(zip(step.sequences, sampled, strict=True))
        return [
            self._prompts.add_to(chunk, by_sequence[chunk.sequence])
            for chunk in batch.chunks
            if chunk.yields_token
        ]

    def release(self, sequence: Sequence) -> None:
        """Forget what was kept for it: its blocks are the engine's to give back."""
        self._prompts.forget(sequence.generation_id)
        self._sampler.forget(sequence)

    def close(self) -> None:
        self._model = None
        self._cache.clear()


def load_batched_backend(
    config: ModelConfig,
    *,
    on_progress: OnProgress,
    measure_free_memory: Callable[[], FreeMemory] = free_memory,
) -> Backend:
    """Load the model for continuous batching, or for `generate` where it cannot be batched.

    Args:
        measure_free_memory: returns what of the CPU's memory can be taken.

    Raises:
        ModelLoadError: the model cannot be served.
    """
    loaded = load_model(config, on_progress=on_progress)
    kernels = _load_kernels(config, loaded.model.device, on_progress)
    on_progress(f"Warming up {loaded.info.model_id}", None)
    with failing_as(f"{loaded.info.model_id} cannot generate"):
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
            free = free_on(loaded.model.device, measure_free_memory)
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
                draw=sample_tokens if kernels is None else partial(native_draw_tokens, kernels),
                num_blocks=num_blocks,
                max_num_seqs=config.max_num_seqs,
                max_batch_tokens=config.max_batch_tokens,
                has_free_memory=watch_memory(
                    loaded.model.device,
                    measure_free_memory,
                    free_bytes=free.num_bytes,
                    num_blocks=num_blocks,
                    block_bytes=bytes_per_token * BLOCK_SIZE,
                ),
            )
        try:
            warm_up(runner, info)
        except Exception:
            runner.close()
            raise
    return Backend(info=info, tokenizer=loaded.tokenizer, runner=runner, grammars=loaded.grammars)


def _load_kernels(
    config: ModelConfig, device: torch.device, on_progress: OnProgress
) -> ctypes.CDLL | None:
    if not config.native_kernels or device.type != "cpu":
        return None
    try:
        return load_kernels(config.cache_dir, on_progress=on_progress)
    except NoKernels as error:
        logger.warning("torch does the work of our own kernels, which is slower: %s", error)
        return None


def _choose_max_model_len(config: ModelConfig, loaded: LoadedModel) -> int:
    """Return the context size in batches: as asked for, or as far as the model can be batched.

    Raises:
        UnsupportedModel: it cannot be batched as far as was asked for, or not far enough to be of
            use.
    """
    wanted = loaded.info.max_model_len
    length = known_length(loaded.model, wanted, max_batch_tokens=config.max_batch_tokens)
    if length == wanted:
        return wanted
    reason = f"beyond {length} tokens it attends in a way that batches do not know"
    if config.max_model_len is not None or length < _MIN_KNOWN_TOKENS:
        raise UnsupportedModel(reason)
    logger.warning(
        "%s gets a context of %d tokens and not its %d: %s; with max_model_len=%d it has all of "
        "them, on the generate backend",
        loaded.info.model_id,
        length,
        wanted,
        reason,
        wanted,
    )
    return length


def _choose_attention(model: Any, kernels: ctypes.CDLL | None) -> tuple[Attention, int]:
    """Return the fastest way to attend that the model takes, and its cache's bytes for a token.

    Raises:
        UnsupportedModel: it takes none.
    """
    if kernels is None:
        return SPAN_ATTENTION, probe(model, attention=SPAN_ATTENTION)
    attention = native_attention(kernels)
    try:
        return attention, probe(model, attention=attention)
    except UnsupportedModel as error:
        reason = error
    bytes_per_token = probe(model, attention=SPAN_ATTENTION)
    logger.info("the model attends in torch, not by our own kernel: %s", reason)
    return SPAN_ATTENTION, bytes_per_token
