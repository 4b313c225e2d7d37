"""Warm-up: it runs within all limits, and releases its sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streaming.backend import Batch, CacheGeometry, Chunk, FailedRow, SampledToken
from streaming.backends.optimization.warm_up import WarmUpFailed, warm_up
from streaming.backends.scripted import ScriptedRunner, scripted_backend

INFO = scripted_backend().info


class RecordingRunner(ScriptedRunner):
    """Records the chunks that it runs, and checks their blocks."""

    def __init__(self, *, cache: CacheGeometry | None = None) -> None:
        super().__init__(lambda _: b"abc", cache=cache)
        self.seen: list[tuple[int, int]] = []
        self.chunks: list[Chunk] = []

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        (chunk,) = batch.chunks
        self.seen.append((chunk.start, chunk.end))
        self.chunks.append(chunk)
        if self.cache is not None:
            assert chunk.end <= len(chunk.block_ids) * self.cache.block_size
            assert max(chunk.block_ids) < self.cache.num_blocks
        return super().run(batch)


def test_a_prefill_and_a_decode_are_run_and_released():
    runner = RecordingRunner()
    warm_up(runner, INFO)
    assert runner.seen == [(0, 32), (32, 33)]
    assert runner.released == ["warm-up"]


@pytest.mark.parametrize("max_model_len", [1, 2, 3, 16, 40])
def test_warm_up_stays_within_a_small_context_vocabulary_and_cache(max_model_len: int):
    cache = CacheGeometry(num_blocks=-(-max_model_len // 4), block_size=4, max_batch_tokens=64)
    runner = RecordingRunner(cache=cache if max_model_len > 1 else None)
    warm_up(runner, replace(INFO, max_model_len=max_model_len, vocab_size=20))
    assert runner.seen[-1][1] <= max(2, max_model_len - 1)
    assert max(runner.chunks[0].token_ids) < 20


class BrokenRunner(ScriptedRunner):
    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        return [FailedRow("not finite")]


def test_a_failed_row_raises_its_reason():
    runner = BrokenRunner(lambda _: b"")
    with pytest.raises(WarmUpFailed, match="not finite"):
        warm_up(runner, INFO)
    assert runner.released == ["warm-up"]


def test_an_exception_of_the_model_is_raised_after_the_release():
    runner = ScriptedRunner(lambda _: [97, RuntimeError("out of memory")])
    with pytest.raises(RuntimeError, match="out of memory"):
        warm_up(runner, INFO)
    assert runner.released == ["warm-up"]
