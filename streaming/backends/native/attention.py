"""Paged attention on CPUs: the KV cache of the kernel in `attention.cpp`, and calls to it.

Used instead of `tiled_attention` where the kernels are available. It reads keys and values in
place, and leaves out most of those that are masked. It is batch-invariant likewise.
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
from streaming.backends.attention.kv_cache import BLOCK_SIZE, Attention, KVCacheBase

_DIM_STEP = 16
"""Sizes of keys and values must be multiples of this, the floats in an AVX-512 vector."""
KV_SPLIT_TOKENS = 512
"""`KV_SPLIT` in `attention.cpp`: each so many keys have a softmax of their own (split-KV)."""
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
class NativeAttentionMetadata:
    """The attention metadata of one step. All tensors are int64.

    Attributes:
        slots: (num_tokens,) cache slot of each new token: block * block_size + offset.
        chunks: (num_chunks * 4,) `Chunk`s of `attention.cpp`: first row, number of rows, cached
            tokens of the sequence (the new ones included and last), and index in `tables` at which
            its block table begins.
        tables: concatenated block tables.
    """

    slots: torch.Tensor
    chunks: torch.Tensor
    tables: torch.Tensor


class NativeKVCache(KVCacheBase):
    """A `PagedKVCache` in the memory layout of `attention.cpp`.

    Keys are transposed within a block. In bfloat16 they are stored in pairs, so the kernel's order
    of elements differs from that of the tensor's shape.

    Args:
        kernels: as returned by `load_kernels`.
        num_blocks: blocks in the cache.
        block_size: tokens in a block; must be `BLOCK_SIZE`.
    """

    def __init__(self, kernels: ctypes.CDLL, num_blocks: int, block_size: int) -> None:
        assert block_size == BLOCK_SIZE
        super().__init__(num_blocks, block_size)
        self.metadata: NativeAttentionMetadata | None = None
        self._kernels = kernels

    def prepare(self, chunks: Iterable[Chunk]) -> tuple[list[Chunk], list[list[int]]]:
        """Return the chunks in the given order, and the values of their metadata.

        The values are `NativeAttentionMetadata.chunks` and `NativeAttentionMetadata.tables`.
        """
        chunks = list(chunks)
        described: list[int] = []
        tables: list[int] = []
        start = 0
        for chunk in chunks:
            described += (start, chunk.num_tokens, chunk.end, len(tables))
            tables += chunk.block_ids[: -(-chunk.end // self.block_size)]
            start += chunk.num_tokens
        return chunks, [described, tables]

    def build_metadata(
        self, chunks: SequenceOf[Chunk], slots: torch.Tensor, values: SequenceOf[torch.Tensor]
    ) -> NativeAttentionMetadata:
        """Return the attention metadata of a step, see `PagedKVCache.build_metadata`."""
        return NativeAttentionMetadata(slots, *values)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's keys and values, each (1, Hkv, T, D), to their slots.

        Padding rows are not written.

        Returns:
            The layer's whole keys, as a tensor of shape (num_blocks, Hkv, D, block_size), and
            values, (num_blocks, Hkv, block_size, D).

        Raises:
            NotImplementedError: the kernel does not support the layer's dtype, device or head size.
            TypeError: the tensors' dtypes, devices or numbers of dimensions do not match.
            ValueError: the tensors' shapes do not match.
        """
        assert self.metadata is not None
        if layer_idx not in self.keys:
            self._make(keys, values, layer_idx)
        cached_keys, cached_values = self.keys[layer_idx], self.values[layer_idx]
        _check_kinds(keys=keys, values=values, cached_keys=cached_keys, cached_values=cached_values)
        num_heads, num_rows, key_dim = keys.shape[1:]
        if (
            keys.shape[0] != 1
            or values.shape[:3] != keys.shape[:3]
            or cached_keys.shape[1:] != (num_heads, key_dim, BLOCK_SIZE)
            or cached_values.shape[1:] != (num_heads, BLOCK_SIZE, values.shape[3])
            or len(self.metadata.slots) > num_rows
        ):
            raise ValueError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} for "
                f"{len(self.metadata.slots)} tokens do not fit the cache of layer {layer_idx}, "
                f"{tuple(cached_keys.shape)} and {tuple(cached_values.shape)}"
            )
        keys, values = _dense(keys), _dense(values)
        arguments = _UpdateArguments(
            keys.data_ptr(),
            values.data_ptr(),
            cached_keys.data_ptr(),
            cached_values.data_ptr(),
            self.metadata.slots.data_ptr(),
            keys.stride(2),
            keys.stride(1),
            values.stride(2),
            values.stride(1),
            len(self.metadata.slots),
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
            raise NotImplementedError(
                f"the attention kernel does not support {keys.dtype} on {keys.device}"
            )
        for size in (keys.shape[3], values.shape[3]):
            if size % _DIM_STEP:
                raise NotImplementedError(
                    f"its head size must be a multiple of {_DIM_STEP} (got {size})"
                )
        # Not zeroed: an operating system gives out memory only when it is written, so unused blocks
        # take none. The kernel's results do not depend on slots that are not written.
        num_heads, key_dim, value_dim = keys.shape[1], keys.shape[3], values.shape[3]
        self.keys[layer_idx] = keys.new_empty(self.num_blocks, num_heads, key_dim, self.block_size)
        self.values[layer_idx] = values.new_empty(
            self.num_blocks, num_heads, self.block_size, value_dim
        )


def native_attention(kernels: ctypes.CDLL) -> Attention:
    """Return the attention that these kernels compute."""
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
    attention_metadata: NativeAttentionMetadata,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from each token to its own sequence's past. Called by transformers for each layer.

    Args:
        kernels: as returned by `load_kernels`.
        module: the layer; not used.
        query: (1, Hq, T, D).
        key: as returned by `NativeKVCache.update`.
        value: likewise.
        attention_mask: must be None: masks follow from the metadata.
        attention_metadata: attention metadata of the step.
        scaling: factor on scores; None for D ** -0.5.
        sliding_window: number of tokens that a token sees, itself included; None for all.
        softcap: must be None.
        **_: arguments that do not affect the result.

    Returns:
        (1, T, Hq, D), zeros in padding rows, and None in place of the attention weights.

    Raises:
        NotImplementedError: there is a mask or a soft cap.
        TypeError: the tensors' dtypes, devices or numbers of dimensions do not match.
        ValueError: the tensors' shapes do not match.
    """
    if attention_mask is not None or softcap is not None:
        raise NotImplementedError("paged attention supports neither masks nor soft caps")
    _check_kinds(query=query, key=key, value=value)
    num_heads, num_rows, key_dim = query.shape[1:]
    num_blocks, num_kv_heads, value_dim = len(key), key.shape[1], value.shape[3]
    if (
        query.shape[0] != 1
        or num_heads % num_kv_heads
        or key.shape != (num_blocks, num_kv_heads, key_dim, BLOCK_SIZE)
        or value.shape != (num_blocks, num_kv_heads, BLOCK_SIZE, value_dim)
        or not (key.is_contiguous() and value.is_contiguous())
        or len(attention_metadata.slots) > num_rows
    ):
        raise ValueError(
            f"queries {tuple(query.shape)} for {len(attention_metadata.slots)} tokens cannot "
            f"attend to a cache of keys {tuple(key.shape)} and values {tuple(value.shape)}"
        )
    query = _dense(query)
    output = query.new_empty(1, num_rows, num_heads, value_dim)
    arguments = _AttendArguments(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        output.data_ptr(),
        attention_metadata.chunks.data_ptr(),
        attention_metadata.tables.data_ptr(),
        query.stride(2),
        query.stride(1),
        len(attention_metadata.chunks) // 4,
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
    if (num_tokens := len(attention_metadata.slots)) < num_rows:
        output[:, num_tokens:] = 0
    return output, None


def _check_kinds(**tensors: torch.Tensor) -> None:
    """Check that all tensors are 4-dimensional, on the CPU and of one supported dtype.

    The kernel gets addresses only: with any other tensor it would read garbage or crash.

    Raises:
        TypeError: they are not.
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
        "the kernel takes 4-dimensional tensors on the CPU, all float32 or all bfloat16 "
        f"(got {described})"
    )


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a copy, with stride 1 in its last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
