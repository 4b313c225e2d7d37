"""What every backend does, whichever it is: the engine and its callers rely on this alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from streaming import GenerationRequest, SamplingParams, TextPrompt
from streaming.backend import Backend, ModelInfo, ModelRunner
from streaming.backends.batched import BatchedRunner
from streaming.backends.generate import GenerateRunner
from streaming.backends.scripted import scripted_backend
from streaming.backends.tokenization.tokenizer import wrap_tokenizer
from tests.streaming.backends import tiny_models
from tests.streaming.backends.rig import EngineRig, ending, token_ids
from tests.support import collect, finish_reason, running_engine, tokenwire_threads

GREEDY = SamplingParams(temperature=0.0)
PROMPT = "hello, who is there?"


@dataclass(frozen=True)
class Case:
    """One backend under test.

    Attributes:
        make: a fresh one, whose greedy answer to `PROMPT` has more than 8 tokens.
        make_failing: one whose third step fails, and no other.
        samples: it chooses tokens by the sampling parameters.
    """

    make: Callable[[], Backend]
    make_failing: Callable[[], Backend]
    samples: bool


def _scripted_failing() -> Backend:
    scripts: list[Iterable[int | Exception]] = [[72, 105, ValueError("broken"), 33], b"fine again"]
    return scripted_backend(lambda _: scripts.pop(0), max_num_seqs=1)


def _model_backend(model: Any, runner: ModelRunner) -> Backend:
    tokenizer = tiny_models.ascii_tokenizer()
    info = ModelInfo(
        model_id="tiny-llama",
        backend="under test",
        dtype="float32",
        device="cpu",
        max_model_len=256,
        vocab_size=len(tokenizer),
        eos_token_ids=frozenset({2}),
        has_chat_template=True,
    )
    return Backend(
        info=info,
        tokenizer=wrap_tokenizer(tokenizer, vocab_size=len(tokenizer)),
        runner=runner,
    )


def _generate_backend(model: Any) -> Backend:
    return _model_backend(model, GenerateRunner(model))


def _batched_backend(model: Any) -> Backend:
    return _model_backend(model, BatchedRunner(model, num_blocks=64))


def _failing_model() -> Any:
    model = tiny_models.tiny_llama()
    num_calls = iter(range(1, 1_000_000))

    def fail_third(*_: object) -> None:
        if next(num_calls) == 3:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(fail_third)
    return model


CASES = {
    "scripted": Case(scripted_backend, _scripted_failing, samples=False),
    "generate": Case(
        lambda: _generate_backend(tiny_models.tiny_llama()),
        lambda: _generate_backend(_failing_model()),
        samples=True,
    ),
    "batched": Case(
        lambda: _batched_backend(tiny_models.tiny_llama()),
        lambda: _batched_backend(_failing_model()),
        samples=True,
    ),
}
SAMPLING_CASES = [name for name, case in CASES.items() if case.samples]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def rig(case: Case) -> Iterator[EngineRig]:
    backend = case.make()
    yield EngineRig(backend)
    backend.runner.close()
    assert tokenwire_threads() == []


@pytest.fixture
def sampling_rig(request: pytest.FixtureRequest) -> Iterator[EngineRig]:
    backend = CASES[request.param].make()
    yield EngineRig(backend)
    backend.runner.close()


only_sampling = pytest.mark.parametrize("sampling_rig", SAMPLING_CASES, indirect=True)


def test_each_step_appends_one_token(rig: EngineRig) -> None:
    generation = rig.add(SamplingParams(temperature=0.0, max_tokens=6), prompt=PROMPT).generation
    counts = []
    while rig.engine.has_work:
        rig.engine.step()
        counts.append(len(generation.tokens))
    assert counts == [1, 2, 3, 4, 5, 6]


def test_greedy_answers_are_the_same_each_time(rig: EngineRig) -> None:
    first = rig.token_ids(GREEDY, prompt=PROMPT)
    assert len(first) > 8
    assert rig.token_ids(GREEDY, prompt=PROMPT) == first


def test_max_tokens_ends_with_length(rig: EngineRig) -> None:
    generation = rig.run(SamplingParams(temperature=0.0, max_tokens=5), prompt=PROMPT)
    assert (ending(generation), len(generation.tokens)) == ("length", 5)


@pytest.mark.pain(11)
def test_usage_counts_the_ids(rig: EngineRig) -> None:
    generation = rig.run(GREEDY, prompt=PROMPT)
    usage = generation.usage
    assert usage.prompt_tokens == len(rig.backend.tokenizer.encode(PROMPT))
    assert usage.completion_tokens == len(generation.tokens)


def test_end_token_ends_with_stop(rig: EngineRig) -> None:
    plain = rig.token_ids(GREEDY, prompt=PROMPT)
    end = plain[4]
    generation = rig.run(GREEDY, prompt=PROMPT, eos_token_ids=frozenset({end}))
    assert ending(generation) == "stop"
    assert token_ids(generation) == plain[: plain.index(end) + 1]


def test_ignore_eos_goes_on(rig: EngineRig) -> None:
    plain = rig.token_ids(GREEDY, prompt=PROMPT)
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=len(plain))
    generation = rig.run(params, prompt=PROMPT, eos_token_ids=frozenset({plain[4]}))
    assert token_ids(generation) == plain


def test_stop_string_ends_before_it(rig: EngineRig) -> None:
    text = rig.run(GREEDY, prompt=PROMPT).text
    stop = text[3:6]
    params = SamplingParams(temperature=0.0, stop=(stop,))
    generation = rig.run(params, prompt=PROMPT)
    assert (ending(generation), generation.text) == ("stop", text[: text.index(stop)])


def test_cancel_frees_the_runner_for_the_next(rig: EngineRig) -> None:
    cancelled = rig.add(GREEDY, prompt=PROMPT).generation
    waiting = rig.add(GREEDY, prompt=PROMPT).generation
    rig.engine.step()
    rig.engine.step()
    rig.engine.cancel(cancelled.generation_id)
    while rig.engine.has_work:
        rig.engine.step()
    rig.engine.check_integrity()
    assert (ending(cancelled), len(cancelled.tokens)) == ("cancelled", 2)
    assert token_ids(waiting)[:2] == token_ids(cancelled)
    assert len(waiting.tokens) > 8


def test_cancel_after_any_number_of_steps_leaves_nothing(rig: EngineRig) -> None:
    plain = rig.token_ids(GREEDY, prompt=PROMPT)
    num_threads = threading.active_count()
    for num_steps in range(8):
        sequence = rig.add(GREEDY, prompt=PROMPT)
        for _ in range(num_steps):
            rig.engine.step()
        rig.engine.cancel(sequence.generation_id)
        assert len(sequence.generation.tokens) == num_steps
    assert not rig.engine.has_work
    assert threading.active_count() == num_threads
    assert rig.token_ids(GREEDY, prompt=PROMPT) == plain


def test_failing_step_fails_its_sequence_only(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    backend = case.make_failing()
    rig = EngineRig(backend)
    failed = rig.run(GREEDY)
    following = rig.run(SamplingParams(temperature=0.0, max_tokens=5))
    backend.runner.close()
    assert (ending(failed), len(failed.tokens)) == ("engine_error", 2)
    assert (ending(following), len(following.tokens)) == ("length", 5)
    assert "a step of 1 sequences failed" in caplog.text


@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_logprobs_are_as_many_as_asked_for(rig: EngineRig, num_top: int) -> None:
    params = SamplingParams(temperature=0.0, logprobs=num_top, max_tokens=4)
    for token in rig.run(params, prompt=PROMPT).tokens:
        assert token.logprobs is not None
        assert token.logprobs.chosen.token_id == token.token_id
        assert token.logprobs.chosen.logprob <= 0.0
        values = [alternative.logprob for alternative in token.logprobs.top]
        assert len(values) == num_top
        assert values == sorted(values, reverse=True)


def test_no_logprobs_unless_asked_for(rig: EngineRig) -> None:
    generation = rig.run(GREEDY, prompt=PROMPT)
    assert {token.logprobs for token in generation.tokens} == {None}
    assert generation.scored_prompt is None


@pytest.mark.parametrize("num_top", [0, 3])
def test_a_prompt_is_scored_from_its_second_token_on(rig: EngineRig, num_top: int) -> None:
    params = SamplingParams(temperature=0.0, prompt_logprobs=num_top, max_tokens=2)
    for _ in range(2):  # the second time, the prompt is in the cache
        generation = rig.run(params, prompt=PROMPT)
        assert generation.scored_prompt is not None
        assert "".join(token.text for token in generation.scored_prompt) == PROMPT
        first, *others = generation.scored_prompt
        assert first.logprobs is None
        for token in others:
            assert token.logprobs is not None
            assert token.logprobs.chosen.token_id == token.token_id
            assert len(token.logprobs.top) == num_top
        assert {token.logprobs for token in generation.tokens} == {None}


@only_sampling
def test_seed_decides_the_answer(sampling_rig: EngineRig) -> None:
    answers = [
        sampling_rig.token_ids(SamplingParams(temperature=2.0, seed=seed, max_tokens=20))
        for seed in (7, 7, 8, -7, 2**63 - 1)
    ]
    assert answers[0] == answers[1]
    assert len({tuple(answer) for answer in answers}) == 4


@only_sampling
def test_min_tokens_bars_end_tokens(sampling_rig: EngineRig) -> None:
    first = sampling_rig.token_ids(GREEDY)[0]
    params = SamplingParams(temperature=0.0, min_tokens=5, max_tokens=12)
    generation = sampling_rig.run(params, eos_token_ids=frozenset({first}))
    assert first not in token_ids(generation)[:5]
    assert len(generation.tokens) >= 6


async def test_streams_to_a_reader_and_leaves_nothing(case: Case) -> None:
    rig = EngineRig(case.make())
    params = SamplingParams(temperature=0.0, max_tokens=8)
    expected = rig.run(params, prompt=PROMPT).text
    rig.backend.runner.close()

    async with running_engine(case.make()) as engine:
        request = GenerationRequest(prompt=TextPrompt(PROMPT), params=params)
        generation = await engine.submit(request)
        events = await collect(engine, generation)
    assert generation.text == expected
    assert len(events) > 2


async def test_reader_that_leaves_ends_the_generation(case: Case) -> None:
    async with running_engine(case.make()) as engine:
        request = GenerationRequest(prompt=TextPrompt(PROMPT), params=GREEDY)
        left = await engine.submit(request)
        with engine.subscribe(left) as reader:
            await anext(aiter(reader))
        short = GenerationRequest(
            prompt=TextPrompt(PROMPT), params=SamplingParams(temperature=0.0, max_tokens=5)
        )
        following = await engine.submit(short)
        await collect(engine, following)
        await collect(engine, left)
    assert finish_reason(following) == "length"
    assert finish_reason(left) in ("cancelled", "stop", "length")


async def test_closing_ends_what_runs(case: Case) -> None:
    async with running_engine(case.make()) as engine:
        request = GenerationRequest(prompt=TextPrompt(PROMPT), params=GREEDY)
        generation: Any = await engine.submit(request)
    assert generation.is_ended


def test_release_of_a_sequence_that_is_not_running_is_harmless(case: Case) -> None:
    backend = case.make()
    rig = EngineRig(backend)
    running = rig.add(GREEDY, prompt=PROMPT)
    rig.engine.step()
    backend.runner.release("stranger")
    rig.engine.step()
    assert len(running.generation.tokens) == 2
    backend.runner.close()
