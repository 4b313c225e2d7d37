"""Interfaces of paged attention: a KV cache in blocks, and a function that attends to it.

Both are plugged into unmodified transformers models. The tokens of a step are concatenated into one
batch row, `(1, num_tokens)`: the newest token of each decoding sequence, and prefill chunks.
Layers other than attention treat each token separately. The attention function finds the tokens of
each sequence, and the cache slots of their keys and values, in the step's attention metadata.
`TILED_ATTENTION` and `native_attention` are the two implementations.
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
METADATA_ARGUMENT = "attention_metadata"
"""Keyword argument that models pass on to each layer's attention function."""


class UnsupportedModel(Exception):
    """The model cannot be batched; the message says why."""


class PagedKVCache(Protocol):
    """Keys and values of all layers, in blocks. A model takes it as its cache.

    Attributes:
        block_size: tokens in a block.
        metadata: attention metadata of the current step.
    """

    block_size: int
    metadata: Any

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token in all layers together; 0 until the model has used the cache."""

    def prepare(self, chunks: Iterable[Chunk]) -> tuple[list[Chunk], list[list[int]]]:
        """Return the chunks in the order of their rows, and the values of their metadata.

        `build_metadata` takes the values as tensors. It is a call of its own because the caller
        puts these values and all other integers of the step into one tensor on the device.
        """

    def build_metadata(
        self, chunks: SequenceOf[Chunk], slots: torch.Tensor, values: SequenceOf[torch.Tensor]
    ) -> Any:
        """Return the attention metadata of a step.

        Args:
            chunks: as returned by `prepare`.
            slots: (num_tokens,) int64 cache slot of each new token: block * block_size + offset.
                Rows of the step after the first `num_tokens` are padding.
            values: the values returned by `prepare`, int64.
        """

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's keys and values, each (1, Hkv, T, D), to their slots.

        Called by the model in each layer. Padding rows have no slot and are not written.

        Returns:
            The layer's whole keys and values, in shapes of the implementation. The model passes
            them on to the attention function.
        """

    def owns(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is one that `update` returned, and not a copy of it."""

    def fill_with_noise(self) -> None:
        """Fill the tensors made so far with random numbers, the same ones at each call."""

    def clear(self) -> None:
        """Free the memory of all layers."""


class KVCacheBase:
    """The part of a `PagedKVCache` that does not depend on its tensors' shapes.

    A layer's tensors are made in its first `update`, as layers may differ in heads and head size.

    Args:
        num_blocks: blocks in the cache.
        block_size: tokens in a block.
    """

    is_compileable = False
    """Read by transformers."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token in all layers together; 0 until the model has used the cache."""
        return sum(tensor[0].nbytes for tensor in self._tensors) // self.block_size

    def owns(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is one that `update` returned, and not a copy of it."""
        return any(
            tensor.data_ptr() == own.data_ptr() and tensor.shape == own.shape
            for own in self._tensors
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0. Read by transformers, where it does not matter: positions are given."""
        return 0

    def fill_with_noise(self) -> None:
        """Fill the tensors made so far with random numbers, the same ones at each call."""
        for number, tensor in enumerate(self._tensors):
            tensor.normal_(generator=torch.Generator(tensor.device).manual_seed(number))

    def clear(self) -> None:
        """Free the memory of all layers."""
        self.keys.clear()
        self.values.clear()

    @property
    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return (*self.keys.values(), *self.values.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """An implementation of paged attention.

    Attributes:
        name: shown to users: "torch" or "native".
        interface_name: name under which transformers registers `function`.
        function: called by models, with the signature of `AttentionInterface`; returns zeros in
            padding rows.
        make_cache: `make_cache(num_blocks, block_size)` returns a cache that `function` can read.
    """

    name: str
    interface_name: str
    function: Callable[..., tuple[torch.Tensor, None]]
    make_cache: Callable[[int, int], PagedKVCache]

    def plug_into(self, model: Any) -> None:
        """Make a transformers model use this attention from its next call on."""
        AttentionInterface.register(self.interface_name, self.function)
        model.set_attn_implementation(self.interface_name)
