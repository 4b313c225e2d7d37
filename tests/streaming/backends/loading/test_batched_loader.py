"""The batched backend from a model folder: its limits, the size of its KV cache, its fallback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PhimoeConfig

from streaming import BackendName, ModelConfig, load_backend
from streaming.backends.attention.kv_cache import BLOCK_SIZE
from streaming.backends.batched import BatchedRunner
from streaming.backends.generate import GenerateRunner
from streaming.backends.loading.batched_loader import load_batched_backend
from streaming.backends.loading.free_memory import FreeMemory
from streaming.errors import ModelLoadError
from streaming.sampling_params import SamplingParams
from tests.streaming.backends import tiny_models
from tests.streaming.backends.rig import EngineRig, ending, token_ids


def load(folder: Path, **options: Any) -> Any:
    config = ModelConfig(model=str(folder), device="cpu", dtype="float32", **options)
    return load_backend(config, on_progress=lambda *_: None)


def load_with_memory(folder: Path, measure: Callable[[], FreeMemory]) -> Any:
    config = ModelConfig(model=str(folder), device="cpu", dtype="float32")
    return load_batched_backend(config, on_progress=lambda *_: None, measure_free_memory=measure)


def bytes_for(num_blocks: int) -> int:
    """Return the size of blocks of the tiny Llama: keys and values, 2 layers, 2 heads of 8."""
    return num_blocks * BLOCK_SIZE * 2 * 2 * 2 * 8 * 4


def test_load_backend_batches_a_folder(llama_folder: Path) -> None:
    backend = load(llama_folder)
    info = backend.info
    assert (info.backend, info.max_model_len) == (BackendName.BATCHED, 256)
    assert isinstance(backend.runner, BatchedRunner)
    assert backend.runner.cache.num_blocks == 64 * 256 // BLOCK_SIZE, "at most 64 full contexts"
    params = SamplingParams(temperature=0.0, max_tokens=9)
    answer = EngineRig(backend).token_ids(params)
    backend.runner.close()
    plain = load(llama_folder, backend=BackendName.GENERATE)
    assert EngineRig(plain).token_ids(params) == answer
    plain.runner.close()


def test_limits_of_the_batch_come_from_the_config(llama_folder: Path) -> None:
    runner = load(llama_folder, max_num_seqs=3, max_batch_tokens=40).runner
    assert (runner.max_num_seqs, runner.cache.max_batch_tokens) == (3, 40)
    runner.close()


def test_a_small_cache_limits_the_context(llama_folder: Path) -> None:
    backend = load(llama_folder, kv_cache_bytes=bytes_for(3) + 1)
    assert (backend.info.max_model_len, backend.runner.cache.num_blocks) == (48, 3)
    rig = EngineRig(backend)
    generation = rig.run(SamplingParams(temperature=0.0, max_tokens=40), prompt=[5] * 8)
    assert (ending(generation), len(token_ids(generation))) == ("length", 40)
    tensors = (*backend.runner._cache.keys.values(), *backend.runner._cache.values.values())
    assert sum(tensor.nbytes for tensor in tensors) == bytes_for(3)
    backend.runner.close()


@pytest.mark.parametrize("kv_cache_bytes", [0, 1, bytes_for(1) - 1])
def test_a_cache_too_small_for_one_block_is_refused(
    llama_folder: Path, kv_cache_bytes: int
) -> None:
    with pytest.raises(ModelLoadError, match=f"kv_cache_bytes is {kv_cache_bytes}, but") as caught:
        load(llama_folder, kv_cache_bytes=kv_cache_bytes)
    assert "\n" not in str(caught.value)


def test_a_small_container_gets_a_small_cache(llama_folder: Path) -> None:
    def load_with(num_bytes: int) -> Any:
        return load_with_memory(llama_folder, lambda: FreeMemory(num_bytes, "memory.max of /a"))

    backend = load_with(2 * bytes_for(3))
    assert (backend.info.max_model_len, backend.runner.cache.num_blocks) == (48, 3)
    backend.runner.close()
    with pytest.raises(ModelLoadError, match=r"30 bytes of memory\.max of /a are free") as caught:
        load_with(30)
    assert "\n" not in str(caught.value)


def test_a_cache_reuses_blocks_when_memory_is_short(llama_folder: Path) -> None:
    """Cached prefixes are evicted first. Free memory is not measured for each block."""
    free_bytes, measured = 2 * bytes_for(64), []

    def measure() -> FreeMemory:
        measured.append(free_bytes)
        return FreeMemory(free_bytes, "the machine")

    backend = load_with_memory(llama_folder, measure)
    has_free_memory = backend.runner.cache.has_free_memory
    calls_per_measurement = 2**26 // bytes_for(1)
    assert [has_free_memory() for _ in range(calls_per_measurement)] == [
        True
    ] * calls_per_measurement
    free_bytes = bytes_for(32)
    assert not has_free_memory()
    assert measured == [2 * bytes_for(64), 2 * bytes_for(64), bytes_for(32)]

    rig = EngineRig(backend)
    params = SamplingParams(max_tokens=2, seed=0)
    for first in range(3, 13):
        rig.run(params, prompt=[first, *range(20, 68)])
    blocks: Any = rig.engine._scheduler._block_manager
    assert blocks.num_touched_blocks == 4, "of ten prompts of four blocks each"
    backend.runner.close()


@pytest.fixture
def longrope_folder(tmp_path: Path) -> Path:
    """A model whose rotary embeddings change beyond 2,048 of its 4,096 tokens."""
    tokenizer = tiny_models.ascii_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = tiny_models.llama_config(len(tokenizer))
    config.max_position_embeddings = 4096
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 2048,
    }
    tiny_models.random_model(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("max_model_len", "served", "backend_name"),
    [
        (None, 2048, BackendName.BATCHED),
        (2048, 2048, BackendName.BATCHED),
        (2049, 2049, BackendName.GENERATE),
    ],
)
def test_a_context_ends_where_batches_stop_supporting_the_attention(
    longrope_folder: Path,
    caplog: pytest.LogCaptureFixture,
    max_model_len: int | None,
    served: int,
    backend_name: BackendName,
) -> None:
    backend = load(longrope_folder, max_model_len=max_model_len)
    assert (backend.info.max_model_len, backend.info.backend) == (served, backend_name)
    lines = [r.getMessage() for r in caplog.records if "beyond 2048 tokens" in r.getMessage()]
    assert len(lines) == (max_model_len != 2048)
    backend.runner.close()


def test_a_model_that_batches_support_for_few_tokens_runs_on_generate(tmp_path: Path) -> None:
    tokenizer = tiny_models.ascii_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = PhimoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        sliding_window=64,
        num_local_experts=2,
    )
    tiny_models.random_model(config).save_pretrained(tmp_path)
    backend = load(tmp_path)
    assert (backend.info.max_model_len, backend.info.backend) == (256, BackendName.GENERATE)
    backend.runner.close()


@pytest.fixture
def mamba_folder(tmp_path: Path) -> Path:
    tokenizer = tiny_models.ascii_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = tiny_models.mamba_config(len(tokenizer))
    tiny_models.random_model(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_model_that_cannot_be_batched_runs_on_generate(
    mamba_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="streaming")
    backend = load(mamba_folder)
    logger_name = load_batched_backend.__module__
    lines = [r.getMessage() for r in caplog.records if r.name == logger_name]
    assert [line.partition(":")[0] for line in lines] == [
        f"{mamba_folder.name} runs one request at a time, on the generate backend"
    ]
    assert "\n" not in lines[0]
    assert backend.info.backend == "generate"
    assert isinstance(backend.runner, GenerateRunner)
    params = SamplingParams(temperature=0.0, max_tokens=9)
    answer = EngineRig(backend).token_ids(params)
    backend.runner.close()
    plain = load(mamba_folder, backend=BackendName.GENERATE)
    assert EngineRig(plain).token_ids(params) == answer
    plain.runner.close()
