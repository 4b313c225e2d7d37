"""Batches are plain data: they are recorded, and another runner gives the same tokens for them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from streaming import Grammar, GrammarKind, SamplingParams
from streaming.backend import Backend, Batch, FailedRow, SampledToken
from streaming.backends.batched import BatchedRunner
from streaming.backends.generate import GenerateRunner
from streaming.backends.scripted import scripted_backend
from tests.streaming.backends import tiny_models
from tests.streaming.backends.attentions import BLOCK_SIZES, attention_named
from tests.streaming.backends.rig import EngineRig, ending
from tests.support import WordCompiler

LONG = "a prompt that several sequences share, and that takes more than one step to read"
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (LONG, {"temperature": 0.0}),
    (LONG, {"temperature": 0.0, "prompt_logprobs": 2, "logprobs": 3}),
    ("b", {"temperature": 1.5, "top_p": 0.9, "seed": 3, "logprobs": 0}),
    (LONG + "?", {"repetition_penalty": 1.3, "presence_penalty": 0.5, "seed": 4}),
    ("aab", {"frequency_penalty": 0.7, "temperature": 0.0, "logit_bias": {7: 3.0, 8: -3.0}}),
    ("c", {"grammar": Grammar(GrammarKind.REGEX, "a word of the grammar"), "seed": 5}),
    ("d", {"min_tokens": 6, "stop_token_ids": frozenset(range(200)), "seed": 6, "top_k": 9}),
]
"""Together they use all that a chunk can carry."""


class RecordingRunner:
    """Records the batches of another runner, pickled and as they are, and its results."""

    def __init__(self, runner: BatchedRunner | GenerateRunner) -> None:
        self._runner = runner
        self.max_num_seqs = runner.max_num_seqs
        self.cache = runner.cache
        self.pickled: list[bytes] = []
        self.batches: list[Batch] = []
        self.results: list[list[SampledToken | FailedRow]] = []

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        self.pickled.append(pickle.dumps(batch))
        self.batches.append(batch)
        self.results.append(self._runner.run(batch))
        return self.results[-1]

    def release(self, generation_id: str) -> None:
        self._runner.release(generation_id)

    def close(self) -> None:
        self._runner.close()


def make_model() -> Any:
    config = tiny_models.llama_config(257)
    config.head_dim = 16  # the native kernel takes multiples of it
    return tiny_models.random_model(config)


def batched_runner(attention: str) -> BatchedRunner:
    block_size = BLOCK_SIZES[attention]
    return BatchedRunner(
        make_model(),
        attention=attention_named(attention),
        num_blocks=192 // block_size,
        block_size=block_size,
        max_batch_tokens=32,
    )


def record(runner: RecordingRunner, requests: list[tuple[str, dict[str, Any]]]) -> EngineRig:
    """Serve all requests at once."""
    scripted = scripted_backend()
    rig = EngineRig(
        Backend(
            info=scripted.info,
            tokenizer=scripted.tokenizer,
            runner=runner,
            grammars=WordCompiler(),
        )
    )
    logs = [
        rig.add(SamplingParams(max_tokens=24, **params), prompt=prompt).generation
        for prompt, params in requests
    ]
    while rig.engine.has_work:
        rig.engine.step()
    assert {ending(log) for log in logs} <= {"length", "stop"}
    return rig


@pytest.mark.parametrize("attention", BLOCK_SIZES)
def test_recorded_batches_give_the_same_tokens_again(attention: str):
    runner = RecordingRunner(batched_runner(attention))
    rig = record(runner, REQUESTS)
    assert rig.engine.num_preemptions, "the cache is too small for all of them"
    copies = [pickle.loads(pickled) for pickled in runner.pickled]
    chunks = [chunk for copy in copies for chunk in copy.chunks]
    for name in ("token_mask", "text_ids", "scored_ids"):
        assert any(getattr(chunk, name) for chunk in chunks), name
    again = batched_runner(attention)
    assert [again.run(copy) for copy in copies] == runner.results
    assert copies == runner.batches, "no later step changes a batch"


def test_a_step_that_runs_twice_gives_the_same_tokens():
    runner = RecordingRunner(batched_runner("torch"))
    record(runner, [request for request in REQUESTS if "prompt_logprobs" not in request[1]])
    again = batched_runner("torch")
    for batch, result in zip(runner.batches, runner.results, strict=True):
        assert [again.run(batch), again.run(batch)] == [result, result]


def test_recorded_batches_of_generate_give_the_same_tokens_again():
    for request in REQUESTS:
        runner, again = RecordingRunner(GenerateRunner(make_model())), GenerateRunner(make_model())
        record(runner, [request])
        results = [again.run(pickle.loads(pickled)) for pickled in runner.pickled]
        again.close()
        assert results == runner.results
