"""Log probabilities of prompts equal those of a plain forward pass, for any chunks."""

from __future__ import annotations

from functools import cache
from math import nan
from typing import Any

import pytest
import torch

from streaming.backend import Backend, FailedRow, ModelInfo, ModelRunner, SampledToken
from streaming.backends.batched import BatchedRunner
from streaming.backends.generate import GenerateRunner
from streaming.backends.sampling.prompt_scorer import PromptScorer
from streaming.backends.scripted import ByteTokenizer
from streaming.log.generation import Generation
from streaming.sampling_params import SamplingParams
from tests.streaming.backends import tiny_models
from tests.streaming.backends.rig import EngineRig, ending, token_ids
from tests.support import chunk_of, make_sequence

VOCAB_SIZE = 257
CONFIGS = {"llama": tiny_models.llama_config, "gpt2": tiny_models.gpt2_config}
LONG = "a prompt that takes several chunks, ok?"
SCORED = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=2)


@cache
def reference_model(name: str) -> Any:
    return tiny_models.random_model(CONFIGS[name](VOCAB_SIZE))


@torch.inference_mode()
def reference(name: str, prompt: str) -> torch.Tensor:
    """Return the log probabilities before each token but the first, (num_tokens - 1, vocab)."""
    ids = torch.tensor([list(prompt.encode())])
    logits: torch.Tensor = reference_model(name)(input_ids=ids).logits[0, :-1]
    return logits.float().log_softmax(dim=-1)


def make_rig(runner: ModelRunner) -> EngineRig:
    info = ModelInfo(
        model_id="tiny",
        backend="under test",
        dtype="float32",
        device="cpu",
        max_model_len=128,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=frozenset(),
        has_chat_template=False,
    )
    return EngineRig(Backend(info=info, tokenizer=ByteTokenizer(), runner=runner))


def batched_rig(name: str, **limits: Any) -> EngineRig:
    model = tiny_models.random_model(CONFIGS[name](VOCAB_SIZE))
    return make_rig(BatchedRunner(model, block_size=4, **{"num_blocks": 128, **limits}))


def assert_scored(generation: Generation, name: str, prompt: str) -> None:
    expected = reference(name, prompt)
    assert generation.scored_prompt is not None
    first, *others = generation.scored_prompt
    assert first.logprobs is None
    assert bytes(token.token_id for token in generation.scored_prompt) == prompt.encode()
    assert "".join(token.text for token in generation.scored_prompt) == prompt
    for token, row in zip(others, expected, strict=True):
        assert token.logprobs is not None
        assert token.logprobs.chosen.token_id == token.token_id
        assert token.logprobs.chosen.logprob == pytest.approx(float(row[token.token_id]), abs=1e-3)
        best = row.topk(2)
        assert [top.token_id for top in token.logprobs.top] == best.indices.tolist()
        assert [top.logprob for top in token.logprobs.top] == pytest.approx(
            best.values.tolist(), abs=1e-3
        )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prompt", ["a", "ab", LONG])
def test_generate_reports_a_plain_forward_pass(name: str, prompt: str):
    runner = GenerateRunner(tiny_models.random_model(CONFIGS[name](VOCAB_SIZE)))
    rig = make_rig(runner)
    scored = rig.run(SCORED, prompt=prompt)
    other = rig.run(SamplingParams(temperature=0.0, max_tokens=1))
    runner.close()
    assert_scored(scored, name, prompt)
    assert other.scored_prompt is None


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_batch_tokens", [1, 3, 8, 200])
def test_batched_reports_the_same_in_chunks_of_any_size(name: str, max_batch_tokens: int):
    rig = batched_rig(name, max_batch_tokens=max_batch_tokens)
    prompts = ["a", "ab", LONG, LONG[:10], LONG]
    scored = [rig.add(SCORED, prompt=prompt).generation for prompt in prompts]
    others = [rig.add(SamplingParams(temperature=0.0), prompt=prompt) for prompt in prompts]
    while rig.engine.has_work:
        rig.engine.step()
        rig.engine.check_integrity()
    for generation, other, prompt in zip(scored, others, prompts, strict=True):
        assert_scored(generation, name, prompt)
        assert generation.usage.cached_tokens == 0
        assert other.generation.scored_prompt is None
        assert token_ids(generation) == token_ids(other.generation)[:3]
    runner = rig.backend.runner
    assert isinstance(runner, BatchedRunner)
    assert runner._prompts._scored == {}


def test_preempted_sequences_report_once():
    """Two sequences prefill and decode; at the end there are blocks for one of them."""
    rig = batched_rig("llama", num_blocks=22, max_batch_tokens=16)
    params = SamplingParams(temperature=0.0, max_tokens=20, prompt_logprobs=2)
    scored = [rig.add(params, prompt=LONG).generation for _ in range(2)]
    while rig.engine.has_work:
        rig.engine.step()
    assert rig.engine.num_preemptions
    for generation in scored:
        assert_scored(generation, "llama", LONG)
        assert len(generation.tokens) == 20


def test_scores_of_a_prompt_are_deleted_with_its_sequence():
    rig = batched_rig("llama", max_batch_tokens=8)
    sequence = rig.add(SCORED, prompt=LONG)
    rig.engine.step()
    runner = rig.backend.runner
    assert isinstance(runner, BatchedRunner)
    assert len(runner._prompts._scored[sequence.generation_id]) == 8
    rig.engine.cancel(sequence.generation_id)
    assert runner._prompts._scored == {}
    assert sequence.generation.scored_prompt is None


def test_a_prompt_preempted_before_its_first_token_is_scored_again():
    scorer = PromptScorer()
    sequence = make_sequence(prompt="abcd", params=SCORED)
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    first, last = chunk_of(sequence, 0, 2), chunk_of(sequence, 2, 2)
    assert [chunk.scored_ids for chunk in (first, last)] == [tuple(b"bc"), tuple(b"d")]
    scorer.take(first, logits[:2])
    scorer.take(first, logits[:2])
    scorer.take(last, logits[2:])
    sampled = scorer.add_to(last, SampledToken(5))
    assert isinstance(sampled, SampledToken)
    assert sampled.prompt_logprobs is not None
    assert [each.chosen.token_id for each in sampled.prompt_logprobs] == list(b"bcd")
    expected = logits.log_softmax(dim=-1)
    assert [each.chosen.logprob for each in sampled.prompt_logprobs] == pytest.approx(
        [float(row[token_id]) for row, token_id in zip(expected, b"bcd", strict=True)]
    )


@pytest.mark.parametrize("make_runner", ["batched", "generate"])
def test_a_prompt_with_logits_that_are_not_finite_fails_its_sequence_only(make_runner: str):
    model = tiny_models.random_model(tiny_models.llama_config(VOCAB_SIZE))

    def spoil(_: object, __: object, output: Any) -> None:
        if output.logits.shape[1] > 2:  # the rows of a prompt that is scored
            output.logits[0, 1] = nan

    model.register_forward_hook(spoil)
    runner: ModelRunner = (
        BatchedRunner(model, num_blocks=64) if make_runner == "batched" else GenerateRunner(model)
    )
    rig = make_rig(runner)
    assert ending(rig.run(SCORED, prompt=LONG)) == "engine_error"
    assert ending(rig.run(SamplingParams(temperature=0.0, max_tokens=2), prompt="ab")) == "length"
    runner.close()


def test_a_row_that_failed_stays_failed():
    scorer = PromptScorer()
    sequence = make_sequence(prompt="ab", params=SCORED)
    failed = FailedRow("broken")
    assert scorer.add_to(chunk_of(sequence), failed) is failed
