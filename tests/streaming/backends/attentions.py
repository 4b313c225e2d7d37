"""Both implementations of paged attention, and a rig that compares either with the formula."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import pad

from streaming.backends.attention.kv_cache import Attention
from streaming.backends.attention.tiled_kv_cache import TILED_ATTENTION
from streaming.backends.native.attention import native_attention
from streaming.backends.native.library import load_kernels
from streaming.backends.optimization.warm_up import dummy_chunk

BLOCK_SIZES = {"torch": 4, "native": 16}
"""By name of the attention. Small where possible, so that short sequences cross many borders."""
HEAD_DIM = 16


def once(load: Callable[[], Any]) -> Callable[[], Any]:
    """Call the function once, and return or raise every time what it did then.

    `cache` does not keep exceptions: every test would compile kernels that fail their check again.
    """

    @cache
    def outcome() -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(load())
        except Exception as error:  # noqa: BLE001 - raised again for every caller
            future.set_exception(error)
        return future

    return lambda: outcome().result()


@once
def kernels() -> Any:
    """Return the kernels. Raises `KernelsUnavailable` without them, which fails the test."""
    return load_kernels()


class KernelChunk(ctypes.Structure):
    """`Chunk` in `attention.cpp`."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("start", "num_tokens", "length", "table"))


def spoiling(is_spoilt: Callable[[Any], bool], *, by: float) -> Callable[[Any], None]:
    """Return `tokenwire_attend`, except that it adds `by` to the outputs of some chunks."""

    def attend(reference: Any) -> None:
        kernels().tokenwire_attend(reference)
        arguments = reference._obj
        dtype = torch.bfloat16 if arguments.is_bfloat16 else torch.float32
        row_bytes = arguments.num_heads * arguments.value_dim * dtype.itemsize
        chunks = ctypes.cast(arguments.chunks, ctypes.POINTER(KernelChunk))
        for chunk in chunks[: arguments.num_chunks]:
            if is_spoilt(chunk):
                rows = (ctypes.c_char * (chunk.num_tokens * row_bytes)).from_address(
                    arguments.output + chunk.start * row_bytes
                )
                torch.frombuffer(rows, dtype=dtype).add_(by)

    return attend


def kernels_with(tokenwire_attend: Callable[[Any], None]) -> Any:
    """Return the kernels with another `tokenwire_attend`."""
    return SimpleNamespace(
        tokenwire_update=kernels().tokenwire_update,
        tokenwire_sample=kernels().tokenwire_sample,
        tokenwire_attend=tokenwire_attend,
    )


def attention_named(name: str) -> Attention:
    return TILED_ATTENTION if name == "torch" else native_attention(kernels())


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend by the formula in double precision. All tensors are (tokens, heads, D).

    There may be fewer queries than keys; they are then those of the last tokens.
    """
    queries_per_kv, length = query.shape[1] // key.shape[1], len(key)
    keys, values = (
        tensor.double().repeat_interleave(queries_per_kv, dim=1).transpose(0, 1)
        for tensor in (key, value)
    )
    scores = query.double().transpose(0, 1) @ keys.transpose(1, 2) * scaling
    positions = torch.arange(length)
    last = positions[-len(query) :, None]
    is_hidden = positions > last
    if sliding_window is not None:
        is_hidden |= positions <= last - sliding_window
    weights = scores.masked_fill(is_hidden, -torch.inf).softmax(dim=-1)
    return (weights @ values).transpose(0, 1)


@dataclass
class Row:
    """One sequence's blocks and its tokens' queries, keys and values, each (L, heads, D)."""

    block_ids: list[int]
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


class AttentionRig:
    """Sequences over one cache, run in steps; outputs are gathered by sequence."""

    def __init__(
        self,
        attention: Attention,
        lengths: list[int],
        *,
        block_size: int,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_dim: int = HEAD_DIM,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        num_blocks = sum(-(-length // block_size) for length in lengths) + 1
        order = torch.randperm(num_blocks, generator=generator).tolist()
        self.attention = attention
        self.head_dim = head_dim
        self.num_blocks = num_blocks
        self.cache: Any = attention.make_cache(num_blocks, block_size)
        self.rows: list[Row] = []
        for length in lengths:
            block_ids = [order.pop() for _ in range(-(-length // block_size))]
            sizes = [(length, heads, head_dim) for heads in (num_heads, num_kv_heads, num_kv_heads)]
            tensors = [torch.randn(*size, generator=generator).to(dtype) for size in sizes]
            self.rows.append(Row(block_ids, *tensors))
        self.done = [0] * len(lengths)
        self.outputs: list[list[torch.Tensor]] = [[] for _ in lengths]

    def step(
        self,
        chunks: list[tuple[int, int]],
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        layer_idx: int = 0,
        num_more: int = 0,
    ) -> None:
        """Run chunks of (sequence, number of tokens), and `num_more` padding rows."""
        prepared, values = self.cache.prepare(
            dummy_chunk(
                [0] * len(self.rows[number].query),
                start=self.done[number],
                end=self.done[number] + num_tokens,
                block_ids=self.rows[number].block_ids,
                generation_id=str(number),
            )
            for number, num_tokens in chunks
        )
        spans = [(int(chunk.sequence.generation_id), chunk.start, chunk.end) for chunk in prepared]
        size = self.cache.block_size
        slots = [
            self.rows[number].block_ids[position // size] * size + position % size
            for number, start, end in spans
            for position in range(start, end)
        ]
        self.cache.metadata = self.cache.build_metadata(
            prepared,
            torch.tensor(slots),
            [torch.tensor(some, dtype=torch.long) for some in values],
        )
        query, key, value = (
            pad(
                torch.cat(
                    [getattr(self.rows[number], name)[start:end] for number, start, end in spans]
                ),
                (0, 0, 0, 0, 0, num_more),
                value=torch.nan,
            ).transpose(0, 1)[None]
            for name in ("query", "key", "value")
        )
        keys, values = self.cache.update(key, value, layer_idx)
        output, weights = self.attention.function(
            torch.nn.Module(),
            query,
            keys,
            values,
            None,
            attention_metadata=self.cache.metadata,
            scaling=scaling,
            sliding_window=sliding_window,
        )
        assert weights is None
        at = 0
        for number, start, end in spans:
            self.outputs[number].append(output[0, at : at + end - start])
            at += end - start
            self.done[number] = end
        assert output.shape[1] == at + num_more
        assert not output[0, at:].any(), "padding rows must be zero, NaN included"

    def check(self, *, scaling: float | None = None, sliding_window: int | None = None) -> None:
        """Compare the outputs of all steps so far with the formula."""
        for row, outputs, done in zip(self.rows, self.outputs, self.done, strict=True):
            if not outputs:
                continue
            expected = plain_attention(
                row.query[:done],
                row.key[:done],
                row.value[:done],
                scaling=self.head_dim**-0.5 if scaling is None else scaling,
                sliding_window=sliding_window,
            )
            is_narrow = row.query.dtype == torch.bfloat16
            torch.testing.assert_close(
                torch.cat(outputs).double(),
                expected,
                rtol=1e-2 if is_narrow else 1e-4,
                atol=1e-2 if is_narrow else 1e-5,
            )
