"""How large the cache of keys and values is, and how far it grows."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from streaming.backends.attention.kv_cache import BLOCK_SIZE
from streaming.backends.loading.memory import FreeMemory, SpareMemory
from streaming.config import ModelConfig
from streaming.errors import ModelLoadError

logger = logging.getLogger(__name__)

_MEMORY_SHARE = 0.5
"""Of the memory that is free once the model is loaded, for keys and values."""
_RESERVE_SHARE = 0.5
"""Of what is left beside the cache, or of the cache if that is less. With less memory free than
that, the cache grows no more as long as it has prefixes to give up."""
_BYTES_PER_LOOK = 2**26
"""The cache grows by so much between two looks at what is free."""


def free_on(device: torch.device, measure_free_memory: Callable[[], FreeMemory]) -> FreeMemory:
    if device.type == "cuda":
        return FreeMemory(torch.cuda.mem_get_info(device)[0], "the GPU's memory")
    return measure_free_memory()


def choose_num_blocks(
    config: ModelConfig, free: FreeMemory, *, max_model_len: int, bytes_per_token: int
) -> int:
    """Return how many blocks the cache has; never more than all sequences could fill.

    Raises:
        ModelLoadError: there is no memory for a single one.
    """
    block_bytes = bytes_per_token * BLOCK_SIZE
    num_bytes = config.kv_cache_bytes
    if num_bytes is None:
        num_bytes = int(free.num_bytes * _MEMORY_SHARE)
        reason = (
            f"{free.num_bytes} bytes of {free.limited_by} are free, and the cache may have "
            f"{num_bytes} of them"
        )
    else:
        reason = f"kv_cache_bytes is {num_bytes}"
    num_useful = config.max_num_seqs * -(-max_model_len // BLOCK_SIZE)
    num_blocks = min(num_useful, num_bytes // block_bytes)
    if num_blocks < 1:
        raise ModelLoadError(f"{reason}, but {BLOCK_SIZE} tokens alone take {block_bytes}")
    if num_blocks * BLOCK_SIZE < max_model_len:
        logger.warning(
            "the context is %d tokens and not %d, as the cache holds no more: %s",
            num_blocks * BLOCK_SIZE,
            max_model_len,
            reason,
        )
    if num_blocks * block_bytes > free.num_bytes:
        logger.warning(
            "the cache may take %d bytes (kv_cache_bytes), but only %d bytes of %s are free",
            num_blocks * block_bytes,
            free.num_bytes,
            free.limited_by,
        )
    return num_blocks


def watch_memory(
    device: torch.device,
    measure_free_memory: Callable[[], FreeMemory],
    *,
    free_bytes: int,
    num_blocks: int,
    block_bytes: int,
) -> Callable[[], bool]:
    """Return what tells the cache whether there is memory to grow into."""
    if device.type != "cpu":
        return lambda: True  # a GPU's memory is taken when the cache is made
    cache_bytes = num_blocks * block_bytes
    rest_bytes = max(0, min(cache_bytes, free_bytes - cache_bytes))
    return SpareMemory(
        measure_free_memory,
        reserve_bytes=int(rest_bytes * _RESERVE_SHARE),
        num_calls_per_look=max(1, _BYTES_PER_LOOK // block_bytes),
    )
