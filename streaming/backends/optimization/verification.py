"""What a model has to show, when it is loaded, before it is batched."""

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
from streaming.backends.attention.tile_layout import KV_TILE_TOKENS
from streaming.backends.native.attention import KV_SPLIT_TOKENS
from streaming.backends.native.rms_norm import replace_rms_norms
from streaming.backends.optimization.module_replacement import restore_layers
from streaming.backends.optimization.packed_linear import NotRowInvariant, pack_linears
from streaming.backends.optimization.warm_up import dry_chunk

logger = logging.getLogger(__name__)

_NUM_PROBE_TOKENS = 24
_MAX_ERROR = 1e-3
_MAX_NARROW_ERROR = 0.06
"""Most that logits of two right computations differ by, relative to the spread of all logits; the
second for 16-bit floats. The default model's in bfloat16 are off float32's by 0.03 to 0.05, however
they are computed."""
_PROOF_LENGTHS = (3, 40, 75, KV_TILE_TOKENS + 20)
"""Prompts that are read alone and together: shorter and longer than a tile, and than a span."""
_LONG_PROOF_LENGTHS = (KV_SPLIT_TOKENS + 20, 2 * KV_SPLIT_TOKENS + 5)
"""Sequences whose last tokens are decoded and read in a chunk. What is before them is made up: to
read it would take longer than all the rest."""
_NUM_LONG_PROOF_TOKENS = 8
_NUM_NEIGHBOURS = 9
"""How often each is decoded at once."""


class NotBatchInvariant(Exception):
    """What the model says depends on what else is in the batch; the text says where it shows."""


@torch.inference_mode()
def probe(model: Any, *, attention: Attention) -> int:
    """Compare the model over a paged cache with the model as it is; return bytes for a token.

    Raises:
        UnsupportedModel: they differ, or the model does not take the cache; it is as it was.
    """
    own_attention = model.config._attn_implementation
    token_ids = _token_ids(model, _NUM_PROBE_TOKENS)
    ids = torch.tensor([token_ids], device=model.device)
    expected = model(input_ids=ids, use_cache=False).logits[0, -1]
    run = DryRun(model, attention, [len(token_ids)])
    try:
        _refusing_copies(attention, run.cache).plug_into(model)
        actual = run.read(0, cut=len(token_ids) - 1)
        if not _are_close(actual, expected, model.dtype) or not run.cache.bytes_per_token:
            raise UnsupportedModel("it answers differently over a paged cache")
    except Exception as error:
        model.set_attn_implementation(own_attention)
        if isinstance(error, UnsupportedModel):
            raise
        raise UnsupportedModel(f"its layers do not take a paged cache ({error})") from error
    attention.plug_into(model)
    return run.cache.bytes_per_token


def _refusing_copies(attention: Attention, cache: PagedKVCache) -> Attention:
    """Return the same way to attend, to nothing but the cache itself.

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
            raise NotImplementedError("they copy it whole")
        return attention.function(module, query, key, value, *arguments, **named_arguments)

    return replace(attention, interface_name=f"{attention.interface_name}_probe", function=attend)


@torch.inference_mode()
def optimize(
    model: Any, *, attention: Attention, kernels: ctypes.CDLL | None, batch_invariant: bool
) -> None:
    """Replace layers of a model that has passed the probe, and see that nothing changes.

    Args:
        kernels: our own, where they can be had.

    Raises:
        NotBatchInvariant: that was asked for, and the model is not.
    """

    def answer() -> torch.Tensor:
        run = DryRun(model, attention, [_NUM_PROBE_TOKENS])
        return run.read(0, cut=_NUM_PROBE_TOKENS - 1)

    expected = answer()
    reason = None
    try:
        if kernels is not None:
            replace_rms_norms(model, kernels)
        pack_linears(model, batch_invariant=batch_invariant)
        if not _are_close(answer(), expected, model.dtype):
            reason = "it answers differently"
    except NotRowInvariant as error:
        raise NotBatchInvariant(str(error)) from error
    # Some models do not call their layers, but take their weights and multiply by themselves.
    except (RuntimeError, AttributeError, TypeError, ValueError, LookupError) as error:
        reason = str(error)
    if reason is not None:
        restore_layers(model)
        if batch_invariant:
            raise NotBatchInvariant(f"its layers cannot be replaced: {reason}")
        logger.warning("its layers stay as they are, which costs some speed: %s", reason)
    elif batch_invariant:
        _prove_batch_invariance(model, attention)


def _prove_batch_invariance(model: Any, attention: Attention) -> None:
    """Compare the bits of tokens that are computed in different company.

    Raises:
        NotBatchInvariant: they differ.
    """
    max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [min(length, max_length or length) for length in _PROOF_LENGTHS]
    run = DryRun(model, attention, lengths)
    numbers = range(len(lengths))
    expected = [run.read(number) for number in numbers]
    for number, length in enumerate(lengths):
        for cut in {1, length // 2, length - 1}:
            if not torch.equal(run.read(number, cut=cut), expected[number]):
                raise NotBatchInvariant(f"{length} tokens are read differently in two parts")
    run = DryRun(model, attention, lengths)  # nothing is left of what was read alone
    run.step([(number, 0, lengths[number] - 1) for number in numbers])
    run.compare_decodes(expected)
    lengths = [
        min(length, max_length or length) for length in (_PROOF_LENGTHS[0], *_LONG_PROOF_LENGTHS)
    ]
    run = DryRun(model, attention, lengths)
    run.read(0)  # makes the tensors
    run.cache.fill_with_noise()
    expected = []
    for number, length in enumerate(lengths):
        start = max(0, length - _NUM_LONG_PROOF_TOKENS)
        [(_, logits)] = run.step([(number, start, length)])
        expected.append(logits)
    run.compare_decodes(expected)


class DryRun:
    """Runs steps over a cache of its own, without an engine.

    Args:
        model: attends in this way.
        lengths: of the sequences, in tokens, from the shortest on.
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

    def read(self, number: int, *, cut: int = 0) -> torch.Tensor:
        """Read a whole sequence, in two parts if `cut` says where; return the last logits."""
        length = len(self._token_ids[number])
        if 0 < cut < length:
            self.step([(number, 0, cut)])
        else:
            cut = 0
        [(_, logits)] = self.step([(number, cut, length)])
        return logits

    def compare_decodes(self, expected: list[torch.Tensor]) -> None:
        """Decode each sequence's last token by itself and many times at once.

        Args:
            expected: the last logits of each sequence.

        Raises:
            NotBatchInvariant: they are others.
        """
        lengths = list(map(len, self._token_ids))
        decodes = [(number, length - 1, length) for number, length in enumerate(lengths)]
        for crowd in (*([decode] for decode in decodes), decodes * _NUM_NEIGHBOURS):
            for number, logits in self.step(crowd):
                if not torch.equal(logits, expected[number]):
                    company = "by itself" if len(crowd) == 1 else "in a crowd"
                    raise NotBatchInvariant(
                        f"token {lengths[number]} is decoded differently {company}"
                    )

    def step(self, chunks: list[tuple[int, int, int]]) -> list[tuple[int, torch.Tensor]]:
        """Run chunks of (number, start, end); return number and logits of those read to the end."""
        batch = Batch(
            tuple(
                dry_chunk(
                    self._token_ids[number],
                    start=start,
                    end=end,
                    block_ids=self._block_ids[number],
                    generation_id=str(number),
                )
                for number, start, end in chunks
            )
        )
        step = prepare_inputs(batch, cache=self.cache, device=self._model.device)
        logits = forward(self._model, step, self.cache)
        numbers = [int(chunk.sequence.generation_id) for chunk in step.yielding]
        return list(zip(numbers, logits, strict=False))


def _token_ids(model: Any, num_tokens: int) -> list[int]:
    vocab_size = model.get_input_embeddings().num_embeddings
    return [token_id % vocab_size for token_id in range(num_tokens)]


def _are_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    max_error = _MAX_ERROR if dtype == torch.float32 else _MAX_NARROW_ERROR
    actual, expected = actual.float(), expected.float()
    spread = (expected.max() - expected.min()).clamp(min=1e-6)
    return bool((actual - expected).abs().max() / spread <= max_error)
