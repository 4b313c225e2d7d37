"""What a model has to show, when it is loaded, before it is batched."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AttentionInterface

from streaming.backend import Batch, Chunk
from streaming.backends.packed_linear import RowsNotAlike, pack_linears, unpack_linears
from streaming.backends.paged_attention import (
    ATTENTION_NAME,
    LAYOUT_ARGUMENT,
    SPAN_TOKENS,
    PagedCache,
    paged_attention,
)
from streaming.backends.step_layout import lay_out
from streaming.backends.warm_up import dry_sequence
from streaming.sequence import Sequence

logger = logging.getLogger(__name__)

_BLOCK_SIZE = 16
_NUM_PROBE_TOKENS = 24
_MAX_PROBE_ERROR = 0.02
"""Most that logits of two right computations differ by, relative to the spread of all logits."""
_PROOF_LENGTHS = (3, 40, 75, SPAN_TOKENS + 20)
"""Prompts that are read alone and together: shorter and longer than a tile, and than a span."""
_NUM_NEIGHBOURS = 9
"""How often each is decoded at once."""


class UnsupportedModel(Exception):
    """The model cannot be batched; the text says why."""


class NotBatchInvariant(Exception):
    """What the model says depends on what else is in the batch; the text says where it shows."""


@torch.inference_mode()
def probe(model: Any) -> int:
    """Compare the model over the paged cache with the model as it is; return bytes for a token.

    Raises:
        UnsupportedModel: they differ, or the model does not take the cache; it is as it was.
    """
    own_attention = model.config._attn_implementation
    token_ids = _token_ids(model, _NUM_PROBE_TOKENS)
    ids = torch.tensor([token_ids], device=model.device)
    expected = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    AttentionInterface.register(ATTENTION_NAME, paged_attention)
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        run = DryRun(model, [len(token_ids)])
        actual = run.read(0, cut=len(token_ids) - 1)
    except Exception as error:
        model.set_attn_implementation(own_attention)
        raise UnsupportedModel(f"its layers do not take a paged cache ({error})") from error
    if not _are_close(actual, expected) or not run.cache.keys:
        model.set_attn_implementation(own_attention)
        raise UnsupportedModel("it answers differently over a paged cache")
    tensors = (*run.cache.keys.values(), *run.cache.values.values())
    return sum(tensor[0, :, 0].nbytes for tensor in tensors)


@torch.inference_mode()
def pack(model: Any, *, batch_invariant: bool) -> None:
    """Pack the linear layers of a model that has passed the probe, and see that nothing changes.

    Raises:
        NotBatchInvariant: that was asked for, and the model is not.
    """
    num_tokens = _NUM_PROBE_TOKENS
    expected = DryRun(model, [num_tokens]).read(0, cut=num_tokens - 1)
    try:
        pack_linears(model, batch_invariant=batch_invariant)
        reason = None
        if not _are_close(DryRun(model, [num_tokens]).read(0, cut=num_tokens - 1), expected):
            reason = "it answers differently"
    except RowsNotAlike as error:
        raise NotBatchInvariant(str(error)) from error
    # Some models do not call their layers, but take their weights and multiply by themselves.
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error)
    if reason is not None:
        unpack_linears(model)
        if batch_invariant:
            raise NotBatchInvariant(f"its linear layers cannot be replaced: {reason}")
        logger.warning("the weights stay plain, which costs some speed: %s", reason)
    elif batch_invariant:
        _prove_batch_invariance(model)


def _prove_batch_invariance(model: Any) -> None:
    """Compare the bits of tokens that are computed in different company.

    Raises:
        NotBatchInvariant: they differ.
    """
    max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [min(length, max_length or length) for length in _PROOF_LENGTHS]
    run = DryRun(model, lengths)
    numbers = range(len(lengths))
    expected = [run.read(number) for number in numbers]
    for number, length in enumerate(lengths):
        for cut in {1, length // 2, length - 1}:
            if not torch.equal(run.read(number, cut=cut), expected[number]):
                raise NotBatchInvariant(f"{length} tokens are read differently in two parts")
    run.wipe()
    run.step([(number, 0, lengths[number] - 1) for number in numbers])
    decodes = [(number, lengths[number] - 1, lengths[number]) for number in numbers]
    for number, logits in run.step(decodes * _NUM_NEIGHBOURS):
        if not torch.equal(logits, expected[number]):
            raise NotBatchInvariant(f"token {lengths[number]} is decoded differently in a crowd")


class DryRun:
    """Runs steps over a cache of its own, without an engine.

    Args:
        model: attends over the paged cache.
        lengths: of the sequences, in tokens, from the shortest on.
    """

    def __init__(self, model: Any, lengths: list[int]) -> None:
        self._model = model
        self._sequences: list[Sequence] = []
        num_blocks = 0
        for length in lengths:
            sequence = dry_sequence(_token_ids(model, length))
            end = num_blocks - (-length // _BLOCK_SIZE)
            sequence.block_table.block_ids = list(range(num_blocks, end))
            self._sequences.append(sequence)
            num_blocks = end
        self.cache = PagedCache(num_blocks=num_blocks, block_size=_BLOCK_SIZE)

    def read(self, number: int, *, cut: int = 0) -> torch.Tensor:
        """Read a whole sequence, in two parts if `cut` says where; return the last logits."""
        length = self._sequences[number].num_tokens
        if 0 < cut < length:
            self.step([(number, 0, cut)])
        else:
            cut = 0
        [(_, logits)] = self.step([(number, cut, length)])
        return logits

    def step(self, chunks: list[tuple[int, int, int]]) -> list[tuple[int, torch.Tensor]]:
        """Run chunks of (number, start, end); return number and logits of what has been read."""
        batch = Batch(
            tuple(
                Chunk(self._sequences[number], start, end - start) for number, start, end in chunks
            )
        )
        step = lay_out(batch, block_size=_BLOCK_SIZE, device=self._model.device)
        self.cache.layout = step.layout
        output = self._model(
            input_ids=step.token_ids,
            position_ids=step.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=step.logits_rows,
            **{LAYOUT_ARGUMENT: step.layout},
        )
        numbers = map(self._sequences.index, step.sequences)
        return list(zip(numbers, output.logits[0], strict=False))

    def wipe(self) -> None:
        for tensor in (*self.cache.keys.values(), *self.cache.values.values()):
            tensor.zero_()


def _token_ids(model: Any, num_tokens: int) -> list[int]:
    vocab_size = model.get_input_embeddings().num_embeddings
    return [token_id % vocab_size for token_id in range(num_tokens)]


def _are_close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    actual, expected = actual.float(), expected.float()
    spread = (expected.max() - expected.min()).clamp(min=1e-6)
    return bool((actual - expected).abs().max() / spread <= _MAX_PROBE_ERROR)
