"""The KV cache gets a share of the free memory, logs its limits and grows into free memory only."""

from __future__ import annotations

import pytest
import torch

from streaming import ModelConfig
from streaming.backends.attention.kv_cache import BLOCK_SIZE
from streaming.backends.loading.free_memory import FreeMemory
from streaming.backends.loading.kv_cache_size import (
    MemoryCheck,
    choose_num_blocks,
    free_device_memory,
    make_memory_check,
)
from streaming.errors import ModelLoadError

CPU = torch.device("cpu")

BYTES_PER_TOKEN = 512


def bytes_for(num_blocks: int) -> int:
    return num_blocks * BLOCK_SIZE * BYTES_PER_TOKEN


@pytest.mark.parametrize(
    ("free_bytes", "kv_cache_bytes", "num_blocks"),
    [
        (2 * bytes_for(5), None, 5),
        (2 * bytes_for(5) - 1, None, 4),
        (2 * bytes_for(1), None, 1),
        (2**40, None, 3 * 7),
        (0, bytes_for(2), 2),
    ],
    ids=["half", "whole blocks only", "one", "all sequences at most", "kv_cache_bytes"],
)
def test_the_cache_gets_half_of_the_free_memory(
    free_bytes: int, kv_cache_bytes: int | None, num_blocks: int
):
    config = ModelConfig(max_num_seqs=3, kv_cache_bytes=kv_cache_bytes)
    free = FreeMemory(free_bytes, "memory.max of /a")
    chosen = choose_num_blocks(config, free, max_model_len=100, bytes_per_token=BYTES_PER_TOKEN)
    assert chosen == num_blocks


def test_a_context_limited_by_memory_is_logged(caplog: pytest.LogCaptureFixture):
    free = FreeMemory(2 * bytes_for(5), "memory.max of /a")
    choose_num_blocks(ModelConfig(), free, max_model_len=81, bytes_per_token=BYTES_PER_TOKEN)
    assert [record.getMessage() for record in caplog.records] == [
        "context limited to 80 of 81 tokens, the capacity of the KV cache: "
        f"{2 * bytes_for(5)} bytes of memory.max of /a are free and the KV cache may use "
        f"{bytes_for(5)} of them"
    ]


def test_a_configured_cache_larger_than_the_free_memory_is_logged(
    caplog: pytest.LogCaptureFixture,
):
    config, free = ModelConfig(kv_cache_bytes=bytes_for(9)), FreeMemory(7, "memory.max of /a")
    choose_num_blocks(config, free, max_model_len=16, bytes_per_token=BYTES_PER_TOKEN)
    assert [record.getMessage() for record in caplog.records] == [
        f"the KV cache may grow to {bytes_for(9)} bytes (kv_cache_bytes), but only 7 bytes of "
        "memory.max of /a are free"
    ]


@pytest.mark.parametrize(
    ("kv_cache_bytes", "reason"),
    [
        (100, "kv_cache_bytes is 100"),
        (
            None,
            "16383 bytes of memory.max of /a are free and the KV cache may use 8191 of them",
        ),
    ],
)
def test_too_little_memory_for_one_block_is_refused(kv_cache_bytes: int | None, reason: str):
    config = ModelConfig(kv_cache_bytes=kv_cache_bytes)
    free = FreeMemory(bytes_for(2) - 1, "memory.max of /a")
    with pytest.raises(ModelLoadError) as caught:
        choose_num_blocks(config, free, max_model_len=99, bytes_per_token=BYTES_PER_TOKEN)
    assert str(caught.value) == f"{reason}, but one block of 16 tokens takes 8192"


def test_free_memory_of_the_cpu_is_measured():
    free = FreeMemory(5, "a box")
    assert free_device_memory(CPU, lambda: free) is free


@pytest.mark.parametrize(
    ("free_blocks", "num_blocks", "reserve_blocks"),
    [(64, 32, 16), (64, 8, 4), (64, 56, 4), (64, 64, 0), (64, 99, 0)],
    ids=["half", "a small cache", "a large one", "all free memory", "more than free"],
)
def test_the_cache_grows_while_more_than_the_reserve_is_free(
    free_blocks: int, num_blocks: int, reserve_blocks: int
):
    left = [bytes_for(reserve_blocks) + 1, bytes_for(reserve_blocks)]
    measured = iter(left)
    has_free_memory = make_memory_check(
        CPU,
        lambda: FreeMemory(next(measured), "a box"),
        free_bytes=bytes_for(free_blocks),
        num_blocks=num_blocks,
        block_bytes=bytes_for(1),
    )
    num_calls = 2**26 // bytes_for(1)
    answers = [has_free_memory() for _ in range(2 * num_calls)]
    assert answers == [True] * num_calls + [False] * num_calls


def test_free_memory_of_a_gpu_is_not_checked():
    """The cache takes it all when it is made."""

    def measure() -> FreeMemory:
        raise AssertionError("must not measure")

    device = torch.device("cuda")
    assert make_memory_check(device, measure, free_bytes=9, num_blocks=9, block_bytes=1)()


def test_memory_is_measured_once_every_few_calls():
    sizes = iter([11, 10, 9, 11])
    has_free_memory = MemoryCheck(
        lambda: FreeMemory(next(sizes), "a box"), reserve_bytes=10, calls_per_measurement=3
    )
    answers = [has_free_memory() for _ in range(12)]
    assert answers == [True] * 3 + [False] * 6 + [True] * 3
    with pytest.raises(StopIteration):
        has_free_memory()


@pytest.mark.parametrize("was_free", [True, False])
def test_a_failed_measurement_keeps_the_last_answer(was_free: bool):
    """A step must not fail because the server has run out of file descriptors."""
    results = iter([was_free])

    def measure() -> FreeMemory:
        for is_free in results:
            return FreeMemory(int(is_free), "a box")
        raise OSError(24, "Too many open files")

    has_free_memory = MemoryCheck(measure, reserve_bytes=0, calls_per_measurement=1)
    assert [has_free_memory() for _ in range(3)] == [was_free] * 3
