from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from streaming import BackendName, Failed, ModelConfig, SamplingParams, load_backend
from streaming.backend import Backend, Batch
from streaming.backends.generate import GenerateFailed, GenerateRunner
from streaming.backends.loading.model_loader import LoadedModel
from streaming.backends.sampling.row_failure import NOT_FINITE
from streaming.backends.scripted import scripted_backend
from streaming.chat.messages import ChatMessage
from streaming.request import ChatPrompt
from tests.streaming.backends import tiny_models
from tests.streaming.backends.rig import EngineRig, ending, token_ids
from tests.support import chunk_of, make_sequence

GREEDY = SamplingParams(temperature=0.0)
CONFIGS = {
    "llama": tiny_models.llama_config,
    "gpt2": tiny_models.gpt2_config,
    "mamba": tiny_models.mamba_config,
}
VOCAB_SIZE = 257


def rig_of(model: Any) -> EngineRig:
    """Return an engine over the model; a prompt's bytes are its token ids."""
    scripted = scripted_backend()
    runner = GenerateRunner(model)
    return EngineRig(Backend(info=scripted.info, tokenizer=scripted.tokenizer, runner=runner))


@pytest.fixture
def model() -> Any:
    return tiny_models.random_model(tiny_models.llama_config(VOCAB_SIZE))


@pytest.fixture
def rig(model: Any) -> Iterator[EngineRig]:
    rig = rig_of(model)
    yield rig
    rig.backend.runner.close()


def reference(model: Any, prompt: str, num_tokens: int) -> list[int]:
    """Return what `generate` says when it is called the plain way."""
    prompt_ids = torch.tensor([list(prompt.encode())])
    config = GenerationConfig(
        do_sample=False, min_new_tokens=num_tokens, max_new_tokens=num_tokens, eos_token_id=None
    )
    output = model.generate(prompt_ids, generation_config=config)
    answer: list[int] = output[0, prompt_ids.shape[1] :].tolist()
    return answer


@pytest.mark.parametrize("make_config", CONFIGS.values(), ids=CONFIGS)
def test_greedy_equals_generate(make_config: Callable[[int], Any]) -> None:
    model = tiny_models.random_model(make_config(VOCAB_SIZE))
    rig = rig_of(model)
    answer = rig.token_ids(SamplingParams(temperature=0.0, max_tokens=30), prompt="tell me")
    rig.backend.runner.close()
    plain = tiny_models.random_model(make_config(VOCAB_SIZE))
    assert answer == reference(plain, "tell me", 30)
    assert len(set(answer)) > 3, "a model that repeats itself proves little"


def test_generation_defaults_of_the_model_do_not_leak(model: Any) -> None:
    expected = reference(model, "hello", 12)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=9.0,
        suppress_tokens=expected,
        eos_token_id=expected[1],
        max_new_tokens=2,
    )
    rig = rig_of(model)
    assert rig.token_ids(GREEDY) == expected
    rig.backend.runner.close()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=2.0, top_k=1, seed=1),
        SamplingParams(temperature=2.0, top_p=1e-9, seed=1),
        SamplingParams(temperature=2.0, min_p=1.0, seed=1),
        SamplingParams(temperature=1e-30, seed=1),
    ],
    ids=["top_k", "top_p", "min_p", "temperature"],
)
def test_narrowest_sampling_is_greedy(rig: EngineRig, params: SamplingParams) -> None:
    assert rig.token_ids(params) == rig.token_ids(GREEDY)


def test_top_k_keeps_to_the_likeliest(rig: EngineRig) -> None:
    params = SamplingParams(temperature=2.0, top_k=3, seed=5, logprobs=3, max_tokens=40)
    tokens = rig.run(params).tokens
    ranks = set()
    for token in tokens:
        assert token.logprobs is not None
        ranks.add([choice.token_id for choice in token.logprobs.top].index(token.token_id))
    assert ranks == {0, 1, 2}


def test_logit_bias_forces_and_forbids(rig: EngineRig) -> None:
    forced = SamplingParams(temperature=0.0, logit_bias={65: 100.0}, max_tokens=3)
    assert rig.token_ids(forced) == [65, 65, 65]
    first = rig.token_ids(GREEDY)[0]
    forbidden = SamplingParams(temperature=0.0, logit_bias={first: -100.0})
    assert first not in rig.token_ids(forbidden)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0, presence_penalty=2.0),
        SamplingParams(temperature=0.0, frequency_penalty=1.5),
        SamplingParams(temperature=0.0, repetition_penalty=1.7),
        SamplingParams(temperature=0.0, repetition_penalty=0.6, frequency_penalty=-1.0),
    ],
    ids=["presence", "frequency", "repetition", "negative"],
)
def test_penalties_follow_their_formulas(
    rig: EngineRig, model: Any, params: SamplingParams
) -> None:
    prompt: list[int] = list(b"hello")
    output: list[int] = []
    for _ in range(12):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + output])).logits[0, -1]
        for token_id in {*prompt, *output}:
            factor = params.repetition_penalty
            logits[token_id] *= 1 / factor if logits[token_id] > 0 else factor
        for token_id in set(output):
            num_times = output.count(token_id)
            logits[token_id] -= params.presence_penalty + params.frequency_penalty * num_times
        output.append(int(logits.argmax()))
    assert rig.token_ids(params) == output
    assert rig.token_ids(GREEDY) != output


def test_logprobs_are_the_models_own(rig: EngineRig, model: Any) -> None:
    params = SamplingParams(temperature=0.5, seed=3, logit_bias={65: 100.0}, logprobs=2)
    (token, *_) = rig.run(params).tokens
    with torch.no_grad():
        logits = model(torch.tensor([list(b"hello")])).logits[0, -1]
    expected = torch.log_softmax(logits, dim=-1)
    best = expected.topk(2)
    assert token.logprobs is not None
    assert token.token_id == 65
    assert token.logprobs.chosen.logprob == pytest.approx(float(expected[65]), abs=1e-4)
    assert [top.token_id for top in token.logprobs.top] == best.indices.tolist()


def test_seed_is_independent_of_other_draws(rig: EngineRig) -> None:
    params = SamplingParams(temperature=1.5, seed=11)
    first = rig.token_ids(params)
    rig.run(SamplingParams(temperature=1.5, seed=12))
    assert rig.token_ids(params) == first


def test_logits_that_are_no_numbers_fail_the_row(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    runner = GenerateRunner(model)
    assert runner.run(Batch((chunk_of(make_sequence()),))) == [NOT_FINITE]
    runner.release("gen_1")
    runner.close()


def test_a_model_that_raises_fails_the_step(model: Any) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("too large")

    model.register_forward_pre_hook(fail)
    runner = GenerateRunner(model)
    with pytest.raises(GenerateFailed, match="MemoryError: too large") as caught:
        runner.run(Batch((chunk_of(make_sequence()),)))
    runner.release("gen_1")
    runner.close()
    assert isinstance(caught.value.__cause__, MemoryError)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rules_that_leave_no_token_are_that_requests_error(
    rig: EngineRig, temperature: float
) -> None:
    """`generate` alone would choose token 0, or fail to draw."""
    banned = SamplingParams(
        temperature=temperature, min_tokens=1, stop_token_ids=frozenset(range(VOCAB_SIZE)), seed=0
    )
    outcome = rig.run(banned).outcome
    assert isinstance(outcome, Failed)
    assert str(outcome.error) == "min_tokens: every token here would end the text"
    assert len(rig.token_ids(GREEDY)) == 12


def test_release_ends_all_computing_at_once(rig: EngineRig, model: Any) -> None:
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    sequence = rig.add(SamplingParams(temperature=0.0, max_tokens=100))
    for _ in range(3):
        rig.engine.step()
    rig.engine.cancel(sequence.generation_id)
    num_calls = len(calls)
    rig.run(SamplingParams(temperature=0.0, max_tokens=1))
    assert (num_calls, len(calls)) == (3, 4)


def test_stop_needs_no_further_forward_pass(rig: EngineRig, model: Any) -> None:
    end = rig.token_ids(GREEDY)[2]
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    generation = rig.run(GREEDY, eos_token_ids=frozenset({end}))
    assert (ending(generation), len(calls)) == ("stop", len(generation.tokens))


def test_released_memory_is_not_kept(rig: EngineRig) -> None:
    """The worker must not hold on to the last sequence, nor to its cache."""
    sequence = rig.add(GREEDY)
    while rig.engine.has_work:
        rig.engine.step()
    seen = weakref.ref(sequence)
    del sequence
    gc.collect()
    assert seen() is None


def test_close_unwinds_generate_even_mid_answer(model: Any) -> None:
    rig = rig_of(model)
    rig.add(GREEDY)
    rig.engine.step()
    assert torch.is_inference_mode_enabled(), "generate waits in the middle of its work"
    rig.backend.runner.close()
    rig.backend.runner.close()
    assert not torch.is_inference_mode_enabled()


def test_close_after_the_engines_thread_has_ended_in_the_middle_of_an_answer(model: Any) -> None:
    rig = rig_of(model)
    rig.add(GREEDY)
    thread = threading.Thread(target=rig.engine.step)
    thread.start()
    thread.join()
    rig.backend.runner.close()


def test_the_model_computes_on_the_thread_that_steps(model: Any) -> None:
    threads: set[threading.Thread] = set()
    hook = model.register_forward_pre_hook(lambda *_: threads.add(threading.current_thread()))
    rig_of(model).token_ids(SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=1))
    hook.remove()
    assert threads == {threading.current_thread()}


def test_load_backend_serves_a_folder(llama_folder: Path) -> None:
    told: list[str] = []
    backend = load_backend(
        ModelConfig(model=str(llama_folder), backend=BackendName.GENERATE, device="cpu"),
        on_progress=lambda text, _: told.append(text),
    )
    rig = EngineRig(backend)
    generation = rig.run(SamplingParams(temperature=0.0, max_tokens=7))
    backend.runner.close()
    assert len(token_ids(generation)) == 7
    name = llama_folder.name
    assert (backend.info.model_id, backend.info.vocab_size) == (name, 100)
    assert list(dict.fromkeys(told)) == [f"Loading {name}", f"Warming up {name}"]


@pytest.fixture
def default_rig(default_model: LoadedModel) -> Iterator[EngineRig]:
    runner = GenerateRunner(default_model.model)
    backend = Backend(info=default_model.info, tokenizer=default_model.tokenizer, runner=runner)
    yield EngineRig(backend)
    runner.close()


@pytest.mark.model
@pytest.mark.timeout(400)
def test_default_model_knows_the_capital_of_france(
    default_model: LoadedModel, default_rig: EngineRig
) -> None:
    prompt_ids = default_model.tokenizer.encode_chat(
        ChatPrompt((ChatMessage("user", "What is the capital of France?"),))
    )
    generation = default_rig.run(SamplingParams(temperature=0.0, max_tokens=24), prompt=prompt_ids)
    expected = default_model.model.generate(
        torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=24
    )
    assert "Paris" in generation.text
    assert token_ids(generation) == expected[0, len(prompt_ids) :].tolist()
