"""The cache has a share of what is free, says what bounds it, and grows only into spare memory."""

from __future__ import annotations

import pytest
import torch

from streaming import ModelConfig
from streaming.backends.attention.kv_cache import BLOCK_SIZE
from streaming.backends.loading.cache_size import choose_num_blocks, free_on, watch_memory
from streaming.backends.loading.memory import FreeMemory
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
    ids=["half", "no part of a block", "one", "no more than is of use", "as is asked for"],
)
def test_the_cache_has_half_of_what_is_free(
    free_bytes: int, kv_cache_bytes: int | None, num_blocks: int
):
    config = ModelConfig(max_num_seqs=3, kv_cache_bytes=kv_cache_bytes)
    free = FreeMemory(free_bytes, "memory.max of /a")
    chosen = choose_num_blocks(config, free, max_model_len=100, bytes_per_token=BYTES_PER_TOKEN)
    assert chosen == num_blocks


def test_a_context_that_memory_cuts_is_told(caplog: pytest.LogCaptureFixture):
    free = FreeMemory(2 * bytes_for(5), "memory.max of /a")
    choose_num_blocks(ModelConfig(), free, max_model_len=81, bytes_per_token=BYTES_PER_TOKEN)
    assert [record.getMessage() for record in caplog.records] == [
        "the context is 80 tokens and not 81, as the cache holds no more: "
        f"{2 * bytes_for(5)} bytes of memory.max of /a are free, and the cache may have "
        f"{bytes_for(5)} of them"
    ]


def test_a_cache_that_is_asked_for_and_does_not_fit_is_told(
    caplog: pytest.LogCaptureFixture,
):
    config, free = ModelConfig(kv_cache_bytes=bytes_for(9)), FreeMemory(7, "memory.max of /a")
    choose_num_blocks(config, free, max_model_len=16, bytes_per_token=BYTES_PER_TOKEN)
    assert [record.getMessage() for record in caplog.records] == [
        f"the cache may take {bytes_for(9)} bytes (kv_cache_bytes), but only 7 bytes of "
        "memory.max of /a are free"
    ]


@pytest.mark.parametrize(
    ("kv_cache_bytes", "reason"),
    [
        (100, "kv_cache_bytes is 100"),
        (
            None,
            "16383 bytes of memory.max of /a are free, and the cache may have 8191 of them",
        ),
    ],
)
def test_memory_for_no_block_at_all_is_told(kv_cache_bytes: int | None, reason: str):
    config = ModelConfig(kv_cache_bytes=kv_cache_bytes)
    free = FreeMemory(bytes_for(2) - 1, "memory.max of /a")
    with pytest.raises(ModelLoadError) as caught:
        choose_num_blocks(config, free, max_model_len=99, bytes_per_token=BYTES_PER_TOKEN)
    assert str(caught.value) == f"{reason}, but 16 tokens alone take 8192"


def test_what_is_free_on_the_cpu_is_what_is_measured():
    free = FreeMemory(5, "a box")
    assert free_on(CPU, lambda: free) is free


@pytest.mark.parametrize(
    ("free_blocks", "num_blocks", "reserve_blocks"),
    [(64, 32, 16), (64, 8, 4), (64, 56, 4), (64, 64, 0), (64, 99, 0)],
    ids=["half", "a small cache", "a large one", "all that is free", "more than is free"],
)
def test_the_cache_grows_while_more_than_a_reserve_is_left(
    free_blocks: int, num_blocks: int, reserve_blocks: int
):
    left = [bytes_for(reserve_blocks) + 1, bytes_for(reserve_blocks)]
    looks = iter(left)
    has_free_memory = watch_memory(
        CPU,
        lambda: FreeMemory(next(looks), "a box"),
        free_bytes=bytes_for(free_blocks),
        num_blocks=num_blocks,
        block_bytes=bytes_for(1),
    )
    calls_per_look = 2**26 // bytes_for(1)
    answers = [has_free_memory() for _ in range(2 * calls_per_look)]
    assert answers == [True] * calls_per_look + [False] * calls_per_look


def test_a_gpus_memory_is_not_watched():
    """It is taken when the cache is made: what is free afterwards says nothing about the cache."""

    def measure() -> FreeMemory:
        raise AssertionError("not asked")

    device = torch.device("cuda")
    assert watch_memory(device, measure, free_bytes=9, num_blocks=9, block_bytes=1)()
