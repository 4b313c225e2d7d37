"""Verifies that a model can be batched, and replaces its layers by faster ones.

The batched loader calls `verify`, then `optimize`. Both run the model over a small paged cache and
compare its logits.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import replace
from typing import Any

import torch

from streaming.backend import Batch
from streaming.backends.attention.forward import forward
from streaming.backends.attention.kv_cache import (
    BLOCK_SIZE,
    Attention,
    PagedKVCache,
    UnsupportedModel,
)
from streaming.backends.attention.model_input import prepare_inputs
from streaming.backends.attention.tiled_metadata import KV_TILE_TOKENS
from streaming.backends.native.attention import KV_SPLIT_TOKENS
from streaming.backends.native.rms_norm import replace_rms_norms
from streaming.backends.optimization.module_replacement import restore_layers
from streaming.backends.optimization.packed_linear import NotRowInvariant, pack_linears
from streaming.backends.optimization.warm_up import dummy_chunk

logger = logging.getLogger(__name__)

_NUM_VERIFIED_TOKENS = 24
_MAX_ERROR = 1e-3
_MAX_NARROW_ERROR = 0.06
"""Largest accepted difference of two computations of the same logits, relative to the range of all
logits; the second is for 16-bit floats. With the default model, bfloat16 logits differ from float32
logits by 0.03 to 0.05, with any implementation."""
_PROMPT_LENGTHS = (3, 40, 75, KV_TILE_TOKENS + 20)
"""Tokens of the prompts that are prefilled alone, in two chunks and in one batch: shorter and
longer than a KV tile."""
_LONG_LENGTHS = (KV_SPLIT_TOKENS + 20, 2 * KV_SPLIT_TOKENS + 5)
"""Tokens of sequences of two and three KV splits. Only the last ones are computed, in a prefill
chunk and in decodes. The cache holds noise for those before: computing them would take longer than
all other checks."""
_NUM_LONG_TOKENS = 8
"""Last tokens of a long sequence that are computed in one prefill chunk."""
_NUM_COPIES = 9
"""Copies of each sequence in a batch of decodes."""


class NotBatchInvariant(Exception):
    """A token's logits depend on the other rows of the batch; the message gives the reason."""


@torch.inference_mode()
def verify(model: Any, *, attention: Attention) -> int:
    """Verify a model's logits over a paged cache; return the cache's bytes per token.

    The reference is the model with its own attention and without a cache. Afterwards, the model
    uses `attention`.

    Raises:
        UnsupportedModel: the logits differ, or the model does not accept the cache. It keeps its
            own attention.
    """
    own_attention = model.config._attn_implementation
    token_ids = _token_ids(model, _NUM_VERIFIED_TOKENS)
    ids = torch.tensor([token_ids], device=model.device)
    expected = model(input_ids=ids, use_cache=False).logits[0, -1]
    run = VerificationRun(model, attention, [len(token_ids)])
    try:
        _rejecting_copies(attention, run.cache).plug_into(model)
        actual = run.prefill(0, split_at=len(token_ids) - 1)
        if not _are_close(actual, expected, model.dtype) or not run.cache.bytes_per_token:
            raise UnsupportedModel("its logits over a paged cache differ from its own")
    except Exception as error:
        model.set_attn_implementation(own_attention)
        if isinstance(error, UnsupportedModel):
            raise
        raise UnsupportedModel(f"its layers do not accept a paged cache ({error})") from error
    attention.plug_into(model)
    return run.cache.bytes_per_token


def _rejecting_copies(attention: Attention, cache: PagedKVCache) -> Attention:
    """Return the same attention, which raises if it is given a copy of the cache.

    Some models repeat keys and values for each query head, which would copy the whole cache.
    """

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *arguments: Any,
        **named_arguments: Any,
    ) -> tuple[torch.Tensor, None]:
        if not (cache.owns(key) and cache.owns(value)):
            raise NotImplementedError("they copy the whole cache")
        return attention.function(module, query, key, value, *arguments, **named_arguments)

    return replace(attention, interface_name=f"{attention.interface_name}_verify", function=attend)


@torch.inference_mode()
def optimize(
    model: Any, *, attention: Attention, kernels: ctypes.CDLL | None, batch_invariant: bool
) -> None:
    """Replace layers of a verified model by faster ones, and verify the logits again.

    The model keeps its own layers if they cannot be replaced.

    Args:
        model: as `verify` left it.
        attention: the attention that the model uses.
        kernels: the native kernels, or None without them.
        batch_invariant: whether a token's logits must not depend on the other rows of a batch.

    Raises:
        NotBatchInvariant: `batch_invariant` is set and the model is not, or its layers cannot be
            replaced.
    """

    def last_logits() -> torch.Tensor:
        run = VerificationRun(model, attention, [_NUM_VERIFIED_TOKENS])
        return run.prefill(0, split_at=_NUM_VERIFIED_TOKENS - 1)

    expected = last_logits()
    reason = None
    try:
        if kernels is not None:
            replace_rms_norms(model, kernels)
        pack_linears(model, batch_invariant=batch_invariant)
        if not _are_close(last_logits(), expected, model.dtype):
            reason = "its logits change"
    except NotRowInvariant as error:
        raise NotBatchInvariant(str(error)) from error
    # Some models read the weights of their layers and multiply them themselves.
    except (RuntimeError, AttributeError, TypeError, ValueError, LookupError) as error:
        reason = str(error)
    if reason is not None:
        restore_layers(model)
        if batch_invariant:
            raise NotBatchInvariant(f"its layers cannot be replaced: {reason}")
        logger.warning("the model's layers cannot be replaced by faster ones: %s", reason)
    elif batch_invariant:
        _verify_batch_invariance(model, attention)


def _verify_batch_invariance(model: Any, attention: Attention) -> None:
    """Compare the bits of logits of the same tokens in different batches.

    Raises:
        NotBatchInvariant: they differ.
    """
    max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [min(length, max_length or length) for length in _PROMPT_LENGTHS]
    run = VerificationRun(model, attention, lengths)
    indices = range(len(lengths))
    expected = [run.prefill(index) for index in indices]
    for index, length in enumerate(lengths):
        for split_at in {1, length // 2, length - 1}:
            if not torch.equal(run.prefill(index, split_at=split_at), expected[index]):
                raise NotBatchInvariant(
                    f"the logits of {length} tokens change when they are prefilled in two chunks"
                )
    # Start with an empty cache, and prefill all prompts in one batch.
    run = VerificationRun(model, attention, lengths)
    run.step([(index, 0, lengths[index] - 1) for index in indices])
    run.compare_decodes(expected)
    lengths = [min(length, max_length or length) for length in (_PROMPT_LENGTHS[0], *_LONG_LENGTHS)]
    run = VerificationRun(model, attention, lengths)
    run.prefill(0)  # makes the cache's tensors
    run.cache.fill_with_noise()
    expected = []
    for index, length in enumerate(lengths):
        start = max(0, length - _NUM_LONG_TOKENS)
        [(_, logits)] = run.step([(index, start, length)])
        expected.append(logits)
    run.compare_decodes(expected)


class VerificationRun:
    """Runs steps over a cache of its own, without an engine.

    Args:
        model: uses `attention`.
        attention: makes the cache.
        lengths: tokens of each sequence, in ascending order.
    """

    def __init__(self, model: Any, attention: Attention, lengths: list[int]) -> None:
        self._model = model
        self._token_ids = [_token_ids(model, length) for length in lengths]
        self._block_ids: list[range] = []
        num_blocks = 0
        for length in lengths:
            end = num_blocks - (-length // BLOCK_SIZE)
            self._block_ids.append(range(num_blocks, end))
            num_blocks = end
        self.cache = attention.make_cache(num_blocks, BLOCK_SIZE)

    def prefill(self, index: int, *, split_at: int = 0) -> torch.Tensor:
        """Prefill one sequence and return its last logits, (vocab_size,).

        Args:
            index: of the sequence.
            split_at: tokens of a first chunk, before the one that contains the others; 0 prefills
                the whole sequence in one chunk.
        """
        length = len(self._token_ids[index])
        if 0 < split_at < length:
            self.step([(index, 0, split_at)])
        else:
            split_at = 0
        [(_, logits)] = self.step([(index, split_at, length)])
        return logits

    def compare_decodes(self, expected: list[torch.Tensor]) -> None:
        """Decode each sequence's last token alone, then all of them in one large batch.

        Args:
            expected: the last logits of each sequence.

        Raises:
            NotBatchInvariant: the logits differ from these in at least one bit.
        """
        lengths = list(map(len, self._token_ids))
        decodes = [(index, length - 1, length) for index, length in enumerate(lengths)]
        for batch in (*([decode] for decode in decodes), decodes * _NUM_COPIES):
            for index, logits in self.step(batch):
                if not torch.equal(logits, expected[index]):
                    neighbours = "alone" if len(batch) == 1 else "beside others"
                    raise NotBatchInvariant(
                        f"the logits of token {lengths[index]} change when it is decoded "
                        f"{neighbours}"
                    )

    def step(self, chunks: list[tuple[int, int, int]]) -> list[tuple[int, torch.Tensor]]:
        """Run one batch of chunks, each (index of the sequence, start, end).

        Returns:
            Index and logits, (vocab_size,), of each sequence of which a chunk reaches the end.
        """
        batch = Batch(
            tuple(
                dummy_chunk(
                    self._token_ids[index],
                    start=start,
                    end=end,
                    block_ids=self._block_ids[index],
                    generation_id=str(index),
                )
                for index, start, end in chunks
            )
        )
        model_input = prepare_inputs(batch, cache=self.cache, device=self._model.device)
        logits = forward(self._model, model_input, self.cache)
        indices = [int(chunk.sequence.generation_id) for chunk in model_input.yielding]
        return list(zip(indices, logits, strict=False))  # padding rows come last


def _token_ids(model: Any, num_tokens: int) -> list[int]:
    vocab_size = model.get_input_embeddings().num_embeddings
    return [token_id % vocab_size for token_id in range(num_tokens)]


def _are_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    max_error = _MAX_ERROR if dtype == torch.float32 else _MAX_NARROW_ERROR
    actual, expected = actual.float(), expected.float()
    spread = (expected.max() - expected.min()).clamp(min=1e-6)
    return bool((actual - expected).abs().max() / spread <= max_error)
