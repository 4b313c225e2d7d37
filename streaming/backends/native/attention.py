"""Attention over a paged cache by a kernel of ours, see `attention.cpp`.

It takes the place of `tiled_attention` on CPUs: no keys or values are copied, none is multiplied
that is not seen, and the same promise holds about bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from streaming.backend import Chunk
from streaming.backends.attention.kv_cache import BLOCK_SIZE, Attention, LayerTensors

_DIM_STEP = 16
"""Sizes of keys and values are multiples of it: a vector of the widest kind."""
SPLIT_TOKENS = 512
"""`SPLIT` in `attention.cpp`: a decode of more keys is computed in splits, side by side."""
_DTYPES = (torch.float32, torch.bfloat16)


class _AttendArguments(ctypes.Structure):
    """`Attention` in `attention.cpp`."""

    _fields_ = (
        ("queries", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("chunks", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("query_token_stride", ctypes.c_int64),
        ("query_head_stride", ctypes.c_int64),
        ("num_chunks", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("key_dim", ctypes.c_int64),
        ("value_dim", ctypes.c_int64),
        ("sliding_window", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("is_bfloat16", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
    )


class _UpdateArguments(ctypes.Structure):
    """`Update` in `attention.cpp`."""

    _fields_ = (
        ("new_keys", ctypes.c_void_p),
        ("new_values", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("key_token_stride", ctypes.c_int64),
        ("key_head_stride", ctypes.c_int64),
        ("value_token_stride", ctypes.c_int64),
        ("value_head_stride", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("key_dim", ctypes.c_int64),
        ("value_dim", ctypes.c_int64),
        ("is_bfloat16", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class NativeLayout:
    """Where the tokens of one step come from and where they go. All int64.

    Attributes:
        slots: (num_tokens,) place in the cache of each new token: block * block_size + offset.
        chunks: (num_chunks * 4,) of each: its first row, its rows, its sequence's cached tokens
            (these included and last), and where its block table begins in `tables`.
        tables: block tables, one behind the other.
    """

    slots: torch.Tensor
    chunks: torch.Tensor
    tables: torch.Tensor


class NativeKVCache(LayerTensors):
    """A `PagedKVCache`, of blocks of the one size that the kernel knows.

    Args:
        kernels: see `load_kernels`.
        num_blocks: size of the pool.
        block_size: tokens in a block.
    """

    def __init__(self, kernels: ctypes.CDLL, num_blocks: int, block_size: int) -> None:
        assert block_size == BLOCK_SIZE
        super().__init__(num_blocks, block_size)
        self.layout: NativeLayout | None = None
        self._kernels = kernels

    def arrange(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Return them as they come."""
        return list(chunks)

    def numbers(self, chunks: SequenceOf[Chunk]) -> list[list[int]]:
        described: list[int] = []
        tables: list[int] = []
        start = 0
        for chunk in chunks:
            described += (start, chunk.num_tokens, chunk.end, len(tables))
            tables += chunk.block_ids[: -(-chunk.end // self.block_size)]
            start += chunk.num_tokens
        return [described, tables]

    def make_layout(
        self, chunks: SequenceOf[Chunk], slots: torch.Tensor, numbers: SequenceOf[torch.Tensor]
    ) -> NativeLayout:
        return NativeLayout(slots, *numbers)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's keys and values, each (1, Hkv, T, D), to their places.

        Returns the whole cache of the layer: keys, (num_blocks, Hkv, D, block_size), and values,
        (num_blocks, Hkv, block_size, D).

        Raises:
            NotImplementedError: the kernel does not know such a layer.
            TypeError, ValueError: the kernel would read other numbers than these tensors hold.
        """
        assert self.layout is not None
        if layer_idx not in self.keys:
            self._make(keys, values, layer_idx)
        cached_keys, cached_values = self.keys[layer_idx], self.values[layer_idx]
        _check_alike(keys=keys, values=values, cached_keys=cached_keys, cached_values=cached_values)
        num_heads, num_rows, key_dim = keys.shape[1:]
        if (
            keys.shape[0] != 1
            or values.shape[:3] != keys.shape[:3]
            or cached_keys.shape[1:] != (num_heads, key_dim, BLOCK_SIZE)
            or cached_values.shape[1:] != (num_heads, BLOCK_SIZE, values.shape[3])
            or len(self.layout.slots) > num_rows
        ):
            raise ValueError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} of "
                f"{len(self.layout.slots)} tokens do not fit the cache of layer {layer_idx}, "
                f"{tuple(cached_keys.shape)} and {tuple(cached_values.shape)}"
            )
        keys, values = _dense(keys), _dense(values)
        arguments = _UpdateArguments(
            keys.data_ptr(),
            values.data_ptr(),
            cached_keys.data_ptr(),
            cached_values.data_ptr(),
            self.layout.slots.data_ptr(),
            keys.stride(2),
            keys.stride(1),
            values.stride(2),
            values.stride(1),
            len(self.layout.slots),
            keys.shape[1],
            keys.shape[3],
            values.shape[3],
            keys.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )
        self._kernels.tokenwire_update(ctypes.byref(arguments))
        return cached_keys, cached_values

    def _make(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int) -> None:
        if keys.dtype not in _DTYPES or keys.device.type != "cpu":
            raise NotImplementedError(f"the kernel knows no {keys.dtype} on {keys.device}")
        for size in (keys.shape[3], values.shape[3]):
            if size % _DIM_STEP:
                raise NotImplementedError(f"its heads' size, {size}, is no multiple of {_DIM_STEP}")
        # Not zeroed: memory that is never written is never taken, and none is used before it is.
        num_heads, key_dim, value_dim = keys.shape[1], keys.shape[3], values.shape[3]
        self.keys[layer_idx] = keys.new_empty(self.num_blocks, num_heads, key_dim, self.block_size)
        self.values[layer_idx] = values.new_empty(
            self.num_blocks, num_heads, self.block_size, value_dim
        )


def native_attention(kernels: ctypes.CDLL) -> Attention:
    """Return the way to attend by these kernels."""
    return Attention(
        name="native",
        interface_name="tokenwire_native",
        function=partial(_attend, kernels),
        make_cache=partial(NativeKVCache, kernels),
    )


def _attend(
    kernels: ctypes.CDLL,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    batch_layout: NativeLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, each sequence to its own past.

    Args:
        query: (1, Hq, T, D).
        key, value: as `NativeKVCache.update` returned them.
        sliding_window: a token sees at most so many, itself included.

    Returns:
        (1, T, Hq, D), zeros for rows that are nobody's, and no weights.

    Raises:
        TypeError, ValueError: the kernel would read other numbers than these tensors hold.
    """
    if attention_mask is not None or softcap is not None:
        raise NotImplementedError("the paged attention takes no mask and no soft cap")
    _check_alike(query=query, key=key, value=value)
    num_heads, num_rows, key_dim = query.shape[1:]
    num_blocks, num_kv_heads, value_dim = len(key), key.shape[1], value.shape[3]
    if (
        query.shape[0] != 1
        or num_heads % num_kv_heads
        or key.shape != (num_blocks, num_kv_heads, key_dim, BLOCK_SIZE)
        or value.shape != (num_blocks, num_kv_heads, BLOCK_SIZE, value_dim)
        or not (key.is_contiguous() and value.is_contiguous())
        or len(batch_layout.slots) > num_rows
    ):
        raise ValueError(
            f"queries {tuple(query.shape)} of {len(batch_layout.slots)} tokens cannot attend to a "
            f"cache of keys {tuple(key.shape)} and values {tuple(value.shape)}"
        )
    query = _dense(query)
    output = query.new_empty(1, num_rows, num_heads, value_dim)
    arguments = _AttendArguments(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        output.data_ptr(),
        batch_layout.chunks.data_ptr(),
        batch_layout.tables.data_ptr(),
        query.stride(2),
        query.stride(1),
        len(batch_layout.chunks) // 4,
        num_heads,
        num_kv_heads,
        key_dim,
        value_dim,
        sliding_window or 0,
        key_dim**-0.5 if scaling is None else scaling,
        query.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    kernels.tokenwire_attend(ctypes.byref(arguments))
    if (num_tokens := len(batch_layout.slots)) < num_rows:
        output[:, num_tokens:] = 0
    return output, None


def _check_alike(**tensors: torch.Tensor) -> None:
    """Raise TypeError where not all are what the kernel takes them for, by the first one.

    It gets addresses: of another dtype, shape or device it would read garbage, or die.
    """
    tensor, *others = tensors.values()
    dtype = tensor.dtype
    if dtype in _DTYPES and all(
        each.dtype is dtype and each.is_cpu and each.dim() == 4 for each in (tensor, *others)
    ):
        return
    described = ", ".join(
        f"{name} {each.dtype} {tuple(each.shape)} on {each.device}"
        for name, each in tensors.items()
    )
    raise TypeError(
        "the kernel takes tensors of four dimensions on the CPU, all float32 or all bfloat16, and "
        f"not {described}"
    )


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with the elements of its last dimension side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
