"""The default model runner: continuous batching over an unmodified Hugging Face model.

One step is one forward pass over one row of tokens: the newest token of each decoding sequence and
the chunks of prompts in prefill. See `attention.kv_cache` for the order of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from streaming.backend import Batch, CacheGeometry, FailedRow, SampledToken
from streaming.backends.attention.forward import forward
from streaming.backends.attention.kv_cache import BLOCK_SIZE, Attention
from streaming.backends.attention.model_input import prepare_inputs
from streaming.backends.attention.tiled_kv_cache import TILED_ATTENTION
from streaming.backends.sampling.prompt_scorer import PromptScorer
from streaming.backends.sampling.sampler import Sampler
from streaming.backends.sampling.sampling import TokenSampler, sample_tokens


class BatchedRunner:
    """Runs many sequences in one forward pass, over a paged KV cache.

    Args:
        model: a transformers model with a language-model head; the runner takes ownership.
        attention: attention over the paged cache.
        token_sampler: samples tokens of rows that are not greedy.
        num_blocks: blocks in the cache.
        block_size: tokens in a block.
        max_num_seqs: most sequences in one batch.
        max_batch_tokens: most tokens in one batch.
        has_free_memory: see `CacheGeometry`.
    """

    def __init__(
        self,
        model: Any,
        *,
        attention: Attention = TILED_ATTENTION,
        token_sampler: TokenSampler = sample_tokens,
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
        self._sampler = Sampler(token_sampler=token_sampler, max_penalized_seqs=max_num_seqs)

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        """Run one step; see `ModelRunner.run`."""
        model_input = prepare_inputs(batch, cache=self._cache, device=self._device)
        # A padded head has logits for ids beyond the embeddings; they must not be chosen.
        logits = forward(self._model, model_input, self._cache)[:, : self._num_readable_ids]
        start = len(model_input.yielding)
        for chunk in model_input.scored:
            end = start + len(chunk.scored_ids)
            self._prompts.take(chunk, logits[start:end])
            start = end
        sampled: list[SampledToken | FailedRow] = []
        if model_input.yielding:
            sampled = self._sampler.sample(
                logits[: len(model_input.yielding)], model_input.yielding
            )
        by_id = {
            chunk.sequence.generation_id: self._prompts.add_to(chunk, token)
            for chunk, token in zip(model_input.yielding, sampled, strict=True)
        }
        # The cache may have put the rows in another order than the batch's.
        return [by_id[chunk.sequence.generation_id] for chunk in batch.chunks if chunk.yields_token]

    def release(self, generation_id: str) -> None:
        """Delete a sequence's sampling state; the engine manages its cache blocks."""
        self._prompts.forget(generation_id)
        self._sampler.forget(generation_id)

    def close(self) -> None:
        """Release the model and the memory of the cache."""
        self._model = None
        self._cache.clear()
