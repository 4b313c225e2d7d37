"""The default backend: continuous batching over an unmodified Hugging Face model.

One step is one forward pass in which all tokens lie in one row: the newest token of each decoding
sequence and the chunks of the prompts that are still being read. See `paged_attention`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import psutil
import torch
from transformers import AttentionInterface

from streaming.backend import Backend, Batch, CacheGeometry, Chunk, FailedRow, SampledToken
from streaming.backends import OnProgress
from streaming.backends.generate import GenerateRunner
from streaming.backends.load_failure import failing_as
from streaming.backends.loading import LoadedModel, load_model
from streaming.backends.paged_attention import (
    ATTENTION_NAME,
    LAYOUT_ARGUMENT,
    BatchLayout,
    PagedCache,
    PrefillRows,
    paged_attention,
)
from streaming.backends.prompt_scorer import PromptScorer
from streaming.backends.sampler import sample
from streaming.backends.warm_up import warm_up
from streaming.config import BackendName, ModelConfig
from streaming.errors import ModelLoadError
from streaming.sequence import Sequence

logger = logging.getLogger(__name__)

BLOCK_SIZE = 16
_MEMORY_SHARE = 0.5
"""Of the memory that is free once the model is loaded, for keys and values."""
_NUM_PROBE_TOKENS = 24
_MAX_PROBE_ERROR = 0.02
"""Most that logits of two right computations differ by, relative to the spread of all logits."""


class UnsupportedModel(Exception):
    """The model cannot be batched; the text says why."""


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
        decodes = [chunk for chunk in batch.chunks if chunk.is_decode]
        prefills = [chunk for chunk in batch.chunks if not chunk.is_decode]
        chunks = decodes + prefills
        layout = self._lay_out(decodes, prefills)
        yielding_rows: list[int] = []
        prompt_rows: list[int] = []
        end = 0
        for chunk in chunks:
            prompt_rows += range(end, end + self._prompts.num_wanted(chunk))
            end += chunk.num_tokens
            if chunk.yields_token:
                yielding_rows.append(end - 1)
        self._cache.layout = layout
        token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        positions = [i for chunk in chunks for i in range(chunk.start, chunk.end)]
        output = self._model(
            input_ids=self._tensor([token_ids]),
            position_ids=self._tensor([positions]),
            past_key_values=self._cache,
            use_cache=True,
            # Logits of one row at least: some models take an empty choice for all rows.
            logits_to_keep=self._tensor(yielding_rows + prompt_rows or [0]),
            **{LAYOUT_ARGUMENT: layout},
        )
        logits, start = output.logits[0], len(yielding_rows)
        for chunk in chunks:
            if num_wanted := self._prompts.num_wanted(chunk):
                self._prompts.take(chunk, logits[start : start + num_wanted])
                start += num_wanted
        sequences = [chunk.sequence for chunk in chunks if chunk.yields_token]
        sampled = sample(logits[: len(yielding_rows)], sequences) if sequences else []
        by_sequence = dict(zip(sequences, sampled, strict=True))
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

    def _lay_out(self, decodes: list[Chunk], prefills: list[Chunk]) -> BatchLayout:
        slots = [
            slot
            for chunk in (*decodes, *prefills)
            for slot in self._slots(chunk, chunk.start, chunk.end)
        ]
        # Only blocks that have been begun: what lies in others may be anything.
        tables = [
            chunk.sequence.block_table.block_ids[: -(-chunk.end // self._cache.block_size)]
            for chunk in decodes
        ]
        num_blocks = max(map(len, tables), default=0)
        padded = [table + table[:1] * (num_blocks - len(table)) for table in tables]
        rows, start = [], len(decodes)
        for chunk in prefills:
            end = start + chunk.num_tokens
            seen = self._slots(chunk, 0, chunk.end)
            rows.append(PrefillRows(start, end, self._tensor(seen)))
            start = end
        return BatchLayout(
            slots=self._tensor(slots),
            num_decodes=len(decodes),
            decode_blocks=self._tensor(padded),
            decode_lengths=self._tensor([chunk.end for chunk in decodes]),
            prefills=tuple(rows),
            fresh_blocks=self._tensor(self._fresh_blocks((*decodes, *prefills))),
        )

    def _fresh_blocks(self, chunks: Iterable[Chunk]) -> list[int]:
        """Return the last block of each chunk, where the chunk begins it and does not fill it."""
        size = self._cache.block_size
        return [
            chunk.sequence.block_table.block_ids[chunk.end // size]
            for chunk in chunks
            if chunk.end % size and chunk.end // size * size >= chunk.start
        ]

    def _slots(self, chunk: Chunk, start: int, end: int) -> list[int]:
        """Return the places of tokens `start` to `end` (half-open) of the chunk's sequence."""
        size = self._cache.block_size
        blocks = chunk.sequence.block_table.block_ids
        return [blocks[position // size] * size + position % size for position in range(start, end)]

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


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
            num_blocks = _choose_num_blocks(config, loaded, bytes_per_token)
            max_model_len = min(loaded.info.max_model_len, num_blocks * BLOCK_SIZE)
            info = replace(loaded.info, max_model_len=max_model_len)
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


@torch.inference_mode()
def probe(model: Any) -> int:
    """Compare the model over the paged cache with the model as it is; return bytes for a token.

    Raises:
        UnsupportedModel: they differ, or the model does not take the cache; it is as it was.
    """
    vocab_size = model.get_input_embeddings().num_embeddings
    token_ids = torch.arange(_NUM_PROBE_TOKENS, device=model.device)[None] % vocab_size
    expected = model(input_ids=token_ids, use_cache=False).logits[0, -1].float()
    own_attention = model.config._attn_implementation
    try:
        actual, cache = _run_probe(model, token_ids)
    except Exception as error:
        model.set_attn_implementation(own_attention)
        raise UnsupportedModel(f"its layers do not take a paged cache ({error})") from error
    spread = (expected.max() - expected.min()).clamp(min=1e-6)
    difference = float((actual - expected).abs().max() / spread)
    if not difference <= _MAX_PROBE_ERROR or not cache.keys:
        model.set_attn_implementation(own_attention)
        raise UnsupportedModel("it answers differently over a paged cache")
    tensors = (*cache.keys.values(), *cache.values.values())
    return sum(tensor[0, 0].nbytes for tensor in tensors)


def _run_probe(model: Any, token_ids: torch.Tensor) -> tuple[torch.Tensor, PagedCache]:
    """Return the logits after the last token, read in a chunk and then a decode, and the cache."""
    AttentionInterface.register(ATTENTION_NAME, paged_attention)
    model.set_attn_implementation(ATTENTION_NAME)
    num_tokens = token_ids.shape[1]
    cache = PagedCache(num_blocks=1, block_size=num_tokens)
    slots = torch.arange(num_tokens, device=token_ids.device)
    nothing = slots[:0]
    first = BatchLayout(
        slots=slots[:-1],
        num_decodes=0,
        decode_blocks=nothing[None],
        decode_lengths=nothing,
        prefills=(PrefillRows(0, num_tokens - 1, slots[:-1]),),
        fresh_blocks=nothing,
    )
    second = BatchLayout(
        slots=slots[-1:],
        num_decodes=1,
        decode_blocks=slots[:1, None],
        decode_lengths=slots[-1:] + 1,
        prefills=(),
        fresh_blocks=nothing,
    )
    for layout in (first, second):
        cache.layout = layout
        output = model(
            input_ids=token_ids[:, layout.slots],
            position_ids=layout.slots[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=slots[:1],
            **{LAYOUT_ARGUMENT: layout},
        )
    return output.logits[0, -1].float(), cache


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
