"""Sizes the KV cache at load time, and limits its growth while the server runs.

On a GPU the whole cache is allocated at once. On a CPU the operating system allocates its pages as
blocks are first used, so the block manager calls a `MemoryCheck` before it uses a new block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import torch

from streaming.backends.attention.kv_cache import BLOCK_SIZE
from streaming.backends.loading.free_memory import FreeMemory
from streaming.config import ModelConfig
from streaming.errors import ModelLoadError

logger = logging.getLogger(__name__)

_MEMORY_SHARE = 0.5
"""Share of the memory that is free once the model is loaded; the KV cache gets this much."""
_RESERVE_SHARE = 0.5
"""Share of the memory left beside the cache, or of the cache if that is smaller, to keep free.
With less free memory the cache evicts prefixes before it takes a block that was never used."""
_BYTES_PER_CHECK = 2**26
"""The cache grows by at most this much between two measurements of free memory."""


def free_device_memory(
    device: torch.device, measure_free_memory: Callable[[], FreeMemory]
) -> FreeMemory:
    """Return the free memory of a CUDA device, or else of this process."""
    if device.type == "cuda":
        return FreeMemory(torch.cuda.mem_get_info(device)[0], "the GPU's memory")
    return measure_free_memory()


def choose_num_blocks(
    config: ModelConfig, free: FreeMemory, *, max_model_len: int, bytes_per_token: int
) -> int:
    """Return the number of blocks in the KV cache, at most what `max_num_seqs` sequences can fill.

    Raises:
        ModelLoadError: the memory is too small for one block.
    """
    block_bytes = bytes_per_token * BLOCK_SIZE
    num_bytes = config.kv_cache_bytes
    if num_bytes is None:
        num_bytes = int(free.num_bytes * _MEMORY_SHARE)
        reason = (
            f"{free.num_bytes} bytes of {free.limited_by} are free and the KV cache may use "
            f"{num_bytes} of them"
        )
    else:
        reason = f"kv_cache_bytes is {num_bytes}"
    num_useful = config.max_num_seqs * -(-max_model_len // BLOCK_SIZE)
    num_blocks = min(num_useful, num_bytes // block_bytes)
    if num_blocks < 1:
        raise ModelLoadError(f"{reason}, but one block of {BLOCK_SIZE} tokens takes {block_bytes}")
    if num_blocks * BLOCK_SIZE < max_model_len:
        logger.warning(
            "context limited to %d of %d tokens, the capacity of the KV cache: %s",
            num_blocks * BLOCK_SIZE,
            max_model_len,
            reason,
        )
    if num_blocks * block_bytes > free.num_bytes:
        logger.warning(
            "the KV cache may grow to %d bytes (kv_cache_bytes), but only %d bytes of %s are free",
            num_blocks * block_bytes,
            free.num_bytes,
            free.limited_by,
        )
    return num_blocks


class MemoryCheck:
    """Returns whether more than a reserve of memory is free, measured once every few calls.

    Args:
        measure: returns the free memory.
        reserve_bytes: memory to keep free.
        calls_per_measurement: number of calls that one measurement answers.
    """

    def __init__(
        self,
        measure: Callable[[], FreeMemory],
        *,
        reserve_bytes: int,
        calls_per_measurement: int,
    ) -> None:
        assert calls_per_measurement > 0
        self._measure = measure
        self._reserve_bytes = reserve_bytes
        self._calls_per_measurement = calls_per_measurement
        self._num_calls_left = 0
        self._has_free_memory = True

    def __call__(self) -> bool:
        """Return whether more than the reserve was free at the last measurement."""
        if self._num_calls_left == 0:
            # A failed measurement, such as without a free file descriptor, keeps the last answer.
            with suppress(OSError):
                self._has_free_memory = self._measure().num_bytes > self._reserve_bytes
            self._num_calls_left = self._calls_per_measurement
        self._num_calls_left -= 1
        return self._has_free_memory


def make_memory_check(
    device: torch.device,
    measure_free_memory: Callable[[], FreeMemory],
    *,
    free_bytes: int,
    num_blocks: int,
    block_bytes: int,
) -> Callable[[], bool]:
    """Return the `has_free_memory` of a KV cache: whether a block that was never used still fits.

    Args:
        device: where the cache is. Only the CPU is checked.
        measure_free_memory: returns the free memory of this process.
        free_bytes: memory that was free before the cache was made.
        num_blocks: size of the cache.
        block_bytes: size of one block, keys and values of all layers.
    """
    if device.type != "cpu":
        return lambda: True  # a GPU's memory is taken when the cache is made
    cache_bytes = num_blocks * block_bytes
    rest_bytes = max(0, min(cache_bytes, free_bytes - cache_bytes))
    return MemoryCheck(
        measure_free_memory,
        reserve_bytes=int(rest_bytes * _RESERVE_SHARE),
        calls_per_measurement=max(1, _BYTES_PER_CHECK // block_bytes),
    )
