"""The default backend: continuous batching over an unmodified Hugging Face model.

One step is one forward pass in which all tokens lie in one row: the newest token of each decoding
sequence and the chunks of the prompts that are still being read. See `paged_attention`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import psutil
import torch
from transformers import AttentionInterface

from streaming.backend import Backend, Batch, CacheGeometry, FailedRow, SampledToken
from streaming.backends import OnProgress
from streaming.backends.generate import GenerateRunner
from streaming.backends.load_failure import failing_as
from streaming.backends.loading import LoadedModel, load_model
from streaming.backends.paged_attention import (
    ATTENTION_NAME,
    LAYOUT_ARGUMENT,
    PagedCache,
    paged_attention,
)
from streaming.backends.probe import NotBatchInvariant, UnsupportedModel, pack, probe
from streaming.backends.prompt_scorer import PromptScorer
from streaming.backends.sampler import sample
from streaming.backends.step_layout import lay_out
from streaming.backends.warm_up import warm_up
from streaming.config import BackendName, ModelConfig
from streaming.errors import ModelLoadError
from streaming.sequence import Sequence

logger = logging.getLogger(__name__)

BLOCK_SIZE = 16
_MEMORY_SHARE = 0.5
"""Of the memory that is free once the model is loaded, for keys and values."""


class BatchedRunner:
    """Runs many sequences in one forward pass, over a cache of its own.

    Args:
        model: a transformers model with a language-model head; owned from here on.
        num_blocks: size of the cache.
        block_size: tokens in a block.
        max_num_seqs: most sequences in one batch.
        max_batch_tokens: most tokens in one batch.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_blocks: int,
        block_size: int = BLOCK_SIZE,
        max_num_seqs: int = 64,
        max_batch_tokens: int = 512,
    ) -> None:
        AttentionInterface.register(ATTENTION_NAME, paged_attention)
        model.set_attn_implementation(ATTENTION_NAME)
        self._model = model
        self._device: torch.device = model.device
        self._cache = PagedCache(num_blocks=num_blocks, block_size=block_size)
        self.cache = CacheGeometry(
            num_blocks=num_blocks, block_size=block_size, max_batch_tokens=max_batch_tokens
        )
        self.max_num_seqs = max_num_seqs
        self._prompts = PromptScorer()

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        step = lay_out(batch, block_size=self._cache.block_size, device=self._device)
        self._cache.layout = step.layout
        output = self._model(
            input_ids=step.token_ids,
            position_ids=step.positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=step.logits_rows,
            **{LAYOUT_ARGUMENT: step.layout},
        )
        logits, start = output.logits[0], len(step.sequences)
        for chunk, num_wanted in step.scored:
            self._prompts.take(chunk, logits[start : start + num_wanted])
            start += num_wanted
        sampled = sample(logits[: len(step.sequences)], step.sequences) if step.sequences else []
        by_sequence = dict(zip(step.sequences, sampled, strict=True))
        return [
            self._prompts.add_to(chunk, by_sequence[chunk.sequence])
            for chunk in batch.chunks
            if chunk.yields_token
        ]

    def release(self, sequence: Sequence) -> None:
        """Forget what was known of its prompt: its blocks are the engine's to give back."""
        self._prompts.forget(sequence.generation_id)

    def close(self) -> None:
        self._model = None
        self._cache.keys.clear()
        self._cache.values.clear()


def load_batched_backend(config: ModelConfig, *, on_progress: OnProgress) -> Backend:
    """Load the model for continuous batching, or for `generate` where it cannot be batched.

    Raises:
        ModelLoadError: the model cannot be served.
    """
    loaded = load_model(config, on_progress=on_progress)
    on_progress(f"Warming up {loaded.info.model_id}", None)
    with failing_as(f"{loaded.info.model_id} cannot generate"):
        try:
            bytes_per_token = probe(loaded.model)
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
                pack(loaded.model, batch_invariant=config.batch_invariant)
            except NotBatchInvariant as error:
                raise ModelLoadError(
                    f"{loaded.info.model_id} cannot be batch_invariant here: {error}"
                ) from error
            num_blocks = _choose_num_blocks(config, loaded, bytes_per_token)
            max_model_len = min(loaded.info.max_model_len, num_blocks * BLOCK_SIZE)
            info = replace(
                loaded.info, max_model_len=max_model_len, batch_invariant=config.batch_invariant
            )
            runner = BatchedRunner(
                loaded.model,
                num_blocks=num_blocks,
                max_num_seqs=config.max_num_seqs,
                max_batch_tokens=config.max_batch_tokens,
            )
        try:
            warm_up(runner, info)
        except Exception:
            runner.close()
            raise
    return Backend(info=info, tokenizer=loaded.tokenizer, runner=runner, grammars=loaded.grammars)


def _choose_num_blocks(config: ModelConfig, loaded: LoadedModel, bytes_per_token: int) -> int:
    """Return how many blocks the cache has; never more than all sequences could fill."""
    device: torch.device = loaded.model.device
    if config.kv_cache_bytes is not None:
        num_bytes = config.kv_cache_bytes
    elif device.type == "cuda":
        num_bytes = int(torch.cuda.mem_get_info(device)[0] * _MEMORY_SHARE)
    else:
        num_bytes = int(psutil.virtual_memory().available * _MEMORY_SHARE)
    num_useful = config.max_num_seqs * -(-loaded.info.max_model_len // BLOCK_SIZE)
    num_blocks = min(num_useful, num_bytes // (bytes_per_token * BLOCK_SIZE))
    if num_blocks < 1:
        raise ModelLoadError(
            f"kv_cache_bytes is {num_bytes}, but {BLOCK_SIZE} tokens alone take "
            f"{bytes_per_token * BLOCK_SIZE}"
        )
    return num_blocks
