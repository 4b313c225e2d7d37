"""What batching asks of an attention over a paged cache, plugged into unmodified models.

All tokens of a step lie in one row, `(1, num_tokens)`: the newest token of each decoding sequence
and the prefill chunks, one behind the other. Linear layers do not care; attention does, and learns
from a layout which rows belong together and where their keys and values lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from streaming.backend import Chunk

BLOCK_SIZE = 16
"""Tokens in a block of the cache."""
LAYOUT_ARGUMENT = "batch_layout"
"""Name of the argument by which a layout passes through the model to each attention."""


class UnsupportedModel(Exception):
    """The model cannot be batched; the text says why."""


class PagedKVCache(Protocol):
    """Keys and values of all layers, in blocks; what a model calls its cache.

    Attributes:
        block_size: tokens in a block.
        layout: of the step that runs.
    """

    block_size: int
    layout: Any

    @property
    def bytes_per_token(self) -> int:
        """Of all layers together; 0 until the model has used the cache."""

    def arrange(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Return the chunks in the order in which their rows shall lie."""

    def numbers(self, chunks: SequenceOf[Chunk]) -> list[list[int]]:
        """Return the numbers that `make_layout` wants to have as tensors."""

    def make_layout(
        self, chunks: SequenceOf[Chunk], slots: torch.Tensor, numbers: SequenceOf[torch.Tensor]
    ) -> Any:
        """Return the layout of arranged chunks.

        Args:
            slots: place in the cache of each new token: block * block_size + offset. The first
                rows of the step are theirs; what comes after is nobody's.
            numbers: what `numbers` returned, int64.
        """

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's keys and values, each (1, Hkv, T, D), to their places, if they have any.

        Called by the model. Returns the whole cache of the layer, in its own shapes: what the
        attention function is then called with.
        """

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether it is what `update` returned, and no copy of it."""

    def make_up(self) -> None:
        """Fill what the model has used of it with random numbers, the same ones each time."""

    def clear(self) -> None:
        """Give the memory back."""


class LayerTensors:
    """What paged caches have in common. Layers may differ in heads and head size; each makes its
    own tensors.

    Args:
        num_blocks: size of the pool.
        block_size: tokens in a block.
    """

    is_compileable = False
    """Asked for by transformers."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    @property
    def bytes_per_token(self) -> int:
        return sum(tensor[0].nbytes for tensor in self._tensors) // self.block_size

    def owns(self, tensor: torch.Tensor) -> bool:
        return any(
            tensor.data_ptr() == own.data_ptr() and tensor.shape == own.shape
            for own in self._tensors
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are given with each step, never derived from the cache."""
        return 0

    def make_up(self) -> None:
        for number, tensor in enumerate(self._tensors):
            tensor.normal_(generator=torch.Generator(tensor.device).manual_seed(number))

    def clear(self) -> None:
        self.keys.clear()
        self.values.clear()

    @property
    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return (*self.keys.values(), *self.values.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """A way to attend over a paged cache.

    Attributes:
        name: for people.
        interface_name: what transformers calls it.
        function: what its models call, as `AttentionInterface` wants it; gives zeros for rows that
            are nobody's.
        make_cache: makes the cache that `function` attends over, from its number of blocks and the
            tokens in each.
    """

    name: str
    interface_name: str
    function: Callable[..., tuple[torch.Tensor, None]]
    make_cache: Callable[[int, int], PagedKVCache]

    def plug_into(self, model: Any) -> None:
        """Let a transformers model attend in this way, from its next call on."""
        AttentionInterface.register(self.interface_name, self.function)
        model.set_attn_implementation(self.interface_name)
