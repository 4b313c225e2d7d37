"""Continuous batching gives every request what it would get alone, token for token."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence as SequenceOf
from functools import cache
from math import nan
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen3Config,
)

from streaming import ModelConfig, load_backend
from streaming.backends.attention.kv_cache import UnsupportedModel
from streaming.backends.attention.tiled_kv_cache import TILED_ATTENTION
from streaming.backends.batched import BatchedRunner
from streaming.backends.loading.model_loader import LoadedModel, load_model
from streaming.backends.optimization.verification import verify
from streaming.engine.engine import Engine
from streaming.log.generation import Generation
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence
from tests.streaming.backends import tiny_models
from tests.streaming.backends.attentions import BLOCK_SIZES, attention_named
from tests.streaming.backends.rig import ending
from tests.support import property_test_of

VOCAB_SIZE = 97
TIE = 5e-6
"""Logits are below 100 here, so that float32 rounds them by some 1e-6."""
MAX_TOKENS = 24
# Weights far from each other make the best token stand out from the next: with the usual small
# ones all logits lie within float noise of each other, and equality would be a matter of luck.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": lambda: Phi3Config(**SIZES, sliding_window=9),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=16, sliding_window=7),
}


@cache
def models(name: str) -> tuple[Any, Any]:
    """Return the same random model twice: as it is, and for batching."""
    made = []
    for _ in range(2):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()
        made.append(model)
    return made[0], made[1]


@cache
def reference(name: str, prompt: tuple[int, ...]) -> list[int]:
    """Return what `model.generate()` says, greedily, alone."""
    model, _ = models(name)
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        eos_token_id=None,
    )
    return [int(token_id) for token_id in output[0, len(prompt) :]]


def is_greedy_but_for_ties(name: str, prompt: tuple[int, ...], answer: list[int]) -> bool:
    """Return whether each token is the likeliest, or as likely as float32 can tell.

    One in many thousand steps has two best logits within a rounding error (seen: 4.8e-7), which
    `generate()` itself breaks one way with its cache and the other way without.
    """
    model, _ = models(name)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return bool((chosen >= logits.amax(dim=-1) - TIE).all())


def make_sequence(
    name: str,
    prompt: tuple[int, ...],
    params: SamplingParams,
    caller: str = "a",
    eos_token_ids: frozenset[int] = frozenset(),
) -> Sequence:
    generation = Generation(
        generation_id=name,
        caller=caller,
        model="tiny",
        created_at=0.0,
        submitted_at=0.0,
        prompt_tokens=len(prompt),
    )
    return Sequence(
        generation=generation,
        prompt_ids=prompt,
        params=params,
        eos_token_ids=eos_token_ids,
        decode=lambda ids: "".join(chr(33 + token_id) for token_id in ids),
        deadline_at=float("inf"),
    )


def make_engine(
    name: str, *, attention: str = "torch", num_tokens: int = 256, max_batch_tokens: int = 32
) -> Engine:
    """Return an engine whose cache has room for so many tokens."""
    _, model = models(name)
    block_size = BLOCK_SIZES[attention]
    runner = BatchedRunner(
        model,
        attention=attention_named(attention),
        num_blocks=num_tokens // block_size,
        block_size=block_size,
        max_num_seqs=6,
        max_batch_tokens=max_batch_tokens,
    )
    return Engine(runner)


def output_ids(sequence: Sequence) -> list[int]:
    return [token.token_id for token in sequence.generation.tokens]


def run_to_end(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine.check_integrity()


# Few stems and short ends, so that prefixes are shared often.
PROMPTS = st.builds(
    lambda stem, end: stem + end,
    st.sampled_from([(*range(5, 22),), (5, 6, 7, 8, 9, 10, 11, 12, 13), (5, 6, 7, 8, 40), (20,)]),
    st.lists(st.integers(3, 96), max_size=6).map(tuple),
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PROMPTS),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("cancel"), st.integers(0, 11)),
    ),
    min_size=3,
    max_size=24,
)


@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "llama" else [pytest.mark.slow]) for name in CONFIGS],
)
@property_test_of(8)
@given(events=EVENTS, num_tokens=st.sampled_from([48, 80, 256]), budget=st.sampled_from([3, 8, 32]))
def test_greedy_equals_generate_under_any_traffic(
    name: str, attention: str, events: list[tuple[str, Any]], num_tokens: int, budget: int
) -> None:
    engine = make_engine(name, attention=attention, num_tokens=num_tokens, max_batch_tokens=budget)
    sequences: list[Sequence] = []
    for kind, value in events:
        if kind == "add" and len(sequences) < 12:
            params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=0)
            sequences.append(make_sequence(str(len(sequences)), value, params))
            engine.add(sequences[-1])
        elif kind == "cancel" and value < len(sequences):
            engine.cancel(str(value))
        elif kind == "step":
            for _ in range(value):
                engine.step()
                engine.check_integrity()
    run_to_end(engine)
    for sequence in sequences:
        actual = output_ids(sequence)
        if ending(sequence.generation) == "length":
            assert len(actual) == MAX_TOKENS
        expected = reference(name, sequence.prompt_ids)[: len(actual)]
        assert actual == expected or is_greedy_but_for_ties(name, sequence.prompt_ids, actual)


@pytest.mark.parametrize("attention", BLOCK_SIZES)
def test_small_cache_preempts_and_still_answers_right(attention: str) -> None:
    engine = make_engine("llama", attention=attention, num_tokens=48)
    prompts = [(5, 6, 7, index) for index in range(10, 16)]
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=0)
    sequences = [make_sequence(str(prompt), prompt, params) for prompt in prompts]
    for sequence in sequences:
        engine.add(sequence)
    run_to_end(engine)
    assert engine.num_preemptions > 0
    assert [output_ids(s) for s in sequences] == [reference("llama", p) for p in prompts]


def test_who_gives_its_place_to_another_caller_still_answers_right() -> None:
    engine = make_engine("llama")
    prompts: list[tuple[int, ...]] = [(5, 6, 7, index) for index in range(10, 18)]
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=0)
    sequences = [make_sequence(str(prompt), prompt, params, "greedy") for prompt in prompts]
    for sequence in sequences:
        engine.add(sequence)
    for _ in range(4):
        engine.step()
    prompts.append((20, 21))
    sequences.append(make_sequence("modest", prompts[-1], params, "modest"))
    engine.add(sequences[-1])
    run_to_end(engine)
    assert engine.num_preemptions == 1
    assert [output_ids(s) for s in sequences] == [reference("llama", p) for p in prompts]


def test_choices_of_one_prompt_share_its_prefill() -> None:
    engine = make_engine("llama")
    prompt = tuple(range(3, 36))
    params = SamplingParams(temperature=0.0, max_tokens=4, seed=0)
    sequences = [make_sequence(str(index), prompt, params) for index in range(4)]
    for sequence in sequences:
        engine.add(sequence)
    run_to_end(engine)
    cached = [sequence.generation.usage.cached_tokens for sequence in sequences]
    assert cached == [0, 32, 32, 32]
    assert len({tuple(output_ids(sequence)) for sequence in sequences}) == 1


def test_second_turn_pays_for_what_is_new() -> None:
    engine = make_engine("llama")
    params = SamplingParams(temperature=0.0, max_tokens=8, seed=0)
    first = make_sequence("first", tuple(range(3, 43)), params)
    engine.add(first)
    run_to_end(engine)
    second = make_sequence("second", (*first.prompt_ids, *output_ids(first), 50, 51), params)
    engine.add(second)
    run_to_end(engine)
    # All but the newest of the first turn's 48 tokens are in the cache, in blocks of four.
    assert second.generation.usage.cached_tokens == 44


SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, top_k=40, max_tokens=16, seed=11)


@pytest.mark.pain(14)
def test_seeded_output_is_the_same_alone_and_in_a_crowd() -> None:
    prompt = (5, 6, 7, 8, 9)
    alone = make_sequence("alone", prompt, SAMPLED)
    engine = make_engine("llama")
    engine.add(alone)
    run_to_end(engine)
    engine = make_engine("llama", num_tokens=96)
    for index in range(5):
        other = SamplingParams(temperature=1.5, max_tokens=20, seed=index, min_p=0.01)
        engine.add(make_sequence(f"other {index}", (20 + index, 3), other))
    for _ in range(3):
        engine.step()
    crowded = make_sequence("crowded", prompt, SAMPLED)
    engine.add(crowded)
    run_to_end(engine)
    assert output_ids(crowded) == output_ids(alone)


def test_broken_logits_end_their_sequence_only() -> None:
    engine = make_engine("gpt2")
    _, model = models("gpt2")
    params = SamplingParams(temperature=0.0, max_tokens=6, seed=0)
    good, bad = make_sequence("good", (5, 6, 7), params), make_sequence("bad", (5, 6, 8), params)
    engine.add(good)
    engine.step()
    engine.step()
    engine.add(bad)

    def break_last_row(_: Any, __: Any, output: Any) -> Any:
        output[..., -1, :] = float("nan")
        return output

    hook = model.lm_head.register_forward_hook(break_last_row)
    engine.step()
    hook.remove()
    run_to_end(engine)
    assert ending(bad.generation) == "engine_error"
    assert output_ids(good) == reference("gpt2", (5, 6, 7))[:6]


def test_failing_step_ends_its_sequences_and_the_next_request_works() -> None:
    engine = make_engine("qwen3")
    _, model = models("qwen3")
    params = SamplingParams(temperature=0.0, max_tokens=6, seed=0)
    failing = make_sequence("failing", (5, 6, 7), params)
    engine.add(failing)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = model.register_forward_pre_hook(fail)
    engine.step()
    hook.remove()
    engine.check_integrity()
    assert ending(failing.generation) == "engine_error"
    fine = make_sequence("fine", (5, 6, 7), params)
    engine.add(fine)
    run_to_end(engine)
    assert output_ids(fine) == reference("qwen3", (5, 6, 7))[:6]


@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_logits_stay_close_to_a_single_run(name: str, attention: str) -> None:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.bfloat16).eval()
    # `verify` compares: it raises where a logit is off by more than 6% of their spread.
    bytes_per_token = verify(model, attention=attention_named(attention))
    assert bytes_per_token > 0
    assert bytes_per_token % 2 == 0


def test_models_with_a_state_instead_of_a_cache_are_rejected() -> None:
    with pytest.raises(UnsupportedModel):
        verify(tiny_models.random_model(tiny_models.mamba_config(97)), attention=TILED_ATTENTION)


# Every request its own.

MIXED = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=20, seed=0),
    "sampled": SamplingParams(temperature=1.3, max_tokens=20, seed=1),
    "nucleus": SamplingParams(temperature=1.0, top_p=0.8, max_tokens=20, seed=2),
    "top-k": SamplingParams(temperature=1.0, top_k=4, max_tokens=20, seed=3, logprobs=3),
    "min-p": SamplingParams(temperature=1.5, min_p=0.1, max_tokens=20, seed=4),
    "penalties": SamplingParams(
        temperature=0.7,
        presence_penalty=1.0,
        frequency_penalty=0.5,
        repetition_penalty=1.3,
        max_tokens=20,
        seed=5,
    ),
    "bias": SamplingParams(temperature=0.0, logit_bias={9: 3.0}, max_tokens=20, seed=6),
    "min_tokens": SamplingParams(temperature=2.0, min_tokens=12, max_tokens=20, seed=7),
    "ignore_eos": SamplingParams(temperature=2.0, ignore_eos=True, max_tokens=20, seed=8),
    "stop": SamplingParams(temperature=2.0, stop=("A", "qu", "~~"), max_tokens=20, seed=9),
    "stop ids": SamplingParams(
        temperature=2.0, stop_token_ids=frozenset(range(40, 50)), max_tokens=20, seed=10
    ),
}
ENDS = frozenset(range(60, 75))


def answers(
    requests: SequenceOf[str],
    *,
    attention: str = "torch",
    num_tokens: int = 256,
    stagger: int = 0,
) -> dict[str, tuple[str, str, list[int]]]:
    """Return text, ending and ids of each of these requests, run together."""
    engine = make_engine("llama", attention=attention, num_tokens=num_tokens)
    sequences = {}
    for index, name in enumerate(requests):
        prompt = (5, 6, 7, 8, 9, 10 + list(MIXED).index(name))
        sequences[name] = make_sequence(name, prompt, MIXED[name], eos_token_ids=ENDS)
        engine.add(sequences[name])
        for _ in range(stagger * (index % 3)):
            engine.step()
    run_to_end(engine)
    return {
        name: (sequence.generation.text, ending(sequence.generation), output_ids(sequence))
        for name, sequence in sequences.items()
    }


@pytest.mark.pain(14)
@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize(("num_tokens", "stagger"), [(256, 0), (256, 2), (56, 1)])
def test_every_request_is_its_own_in_a_mixed_batch(
    num_tokens: int, stagger: int, attention: str
) -> None:
    """Nothing of one request touches another, whoever else is in the batch."""
    alone = {name: answers([name], attention=attention)[name] for name in MIXED}
    together, backwards = (
        answers(names, attention=attention, num_tokens=num_tokens, stagger=stagger)
        for names in (list(MIXED), list(reversed(MIXED)))
    )
    assert together == alone
    assert backwards == alone
    assert {reason for _, reason, _ in alone.values()} == {"stop", "length"}
    assert len(alone["min_tokens"][2]) > 12
    assert not ENDS & set(alone["min_tokens"][2][:12])
    assert ENDS & set(alone["ignore_eos"][2][:-1])


def test_choices_with_seeds_of_their_own_differ() -> None:
    engine = make_engine("llama")
    prompt = tuple(range(3, 20))
    sequences = [
        make_sequence(str(seed), prompt, SamplingParams(temperature=1.5, max_tokens=12, seed=seed))
        for seed in range(5)
    ]
    for sequence in sequences:
        engine.add(sequence)
    run_to_end(engine)
    assert len({tuple(output_ids(sequence)) for sequence in sequences}) == 5
    assert [s.generation.usage.cached_tokens for s in sequences] == [0, 16, 16, 16, 16]


def step_with_broken_rows(engine: Engine, model: Any, num_rows: int) -> None:
    """Run a step whose first rows are NaN from the first layer on."""

    def break_rows(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output[:, :num_rows] = nan
        return output

    hook = model.get_input_embeddings().register_forward_hook(break_rows)
    engine.step()
    hook.remove()


@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_a_broken_request_leaves_in_the_cache_hurts_nobody(name: str, attention: str) -> None:
    """Its blocks hold NaN, and others get them next; a masked NaN still spoils a sum."""
    engine = make_engine(name, attention=attention, num_tokens=56)
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=0)
    bad = make_sequence("bad", tuple(range(3, 33)), params)
    engine.add(bad)
    step_with_broken_rows(engine, models(name)[1], 30)
    assert ending(bad.generation) == "engine_error"
    prompts = [(20,), tuple(range(3, 12)), (5, 6, 7, 8, 40, 41), (30, 31, 32)]
    sequences = [make_sequence(str(p), p, params) for p in prompts]
    for sequence in sequences:
        engine.add(sequence)
    run_to_end(engine)
    assert [output_ids(s) for s in sequences] == [reference(name, p) for p in prompts]


def test_a_broken_request_hurts_nobody_that_runs_beside_it() -> None:
    """Its block is the first one, and shorter sequences are padded to the length of longer ones."""
    engine = make_engine("llama")
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=0)
    prompts = [(5, 6, 7), (20,), tuple(range(3, 12))]
    bad, *others = [make_sequence(str(p), p, params) for p in prompts]
    for sequence in (bad, *others):
        engine.add(sequence)
    engine.step()
    assert bad.block_table.block_ids == (0,)
    step_with_broken_rows(engine, models("llama")[1], 1)
    assert ending(bad.generation) == "engine_error"
    run_to_end(engine)
    assert [output_ids(s) for s in others] == [reference("llama", p) for p in prompts[1:]]


@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize("num_prompt_tokens", [1, 7, 8, 15, 16])
def test_a_sequence_may_fill_the_cache_to_its_end(num_prompt_tokens: int, attention: str) -> None:
    engine = make_engine("llama", attention=attention, num_tokens=16)
    prompt = tuple(range(3, 3 + num_prompt_tokens))
    num_tokens = 16 + 1 - num_prompt_tokens  # the last one is never run
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, seed=0)
    sequence = make_sequence("full", prompt, params)
    engine.add(sequence)
    run_to_end(engine)
    assert output_ids(sequence) == reference("llama", prompt)[:num_tokens]
    assert engine.num_preemptions == 0


def test_a_failed_verification_leaves_the_model_unchanged() -> None:
    model = tiny_models.random_model(CONFIGS["llama"]())
    ids = torch.tensor([[5, 6, 7]])
    own, expected = model.config._attn_implementation, model(ids).logits
    hook = model.lm_head.register_forward_hook(
        lambda *args: args[2] * (1.0 if args[2].shape[1] > 1 else 3.0)
    )
    with pytest.raises(UnsupportedModel, match="logits over a paged cache differ"):
        verify(model, attention=TILED_ATTENTION)
    hook.remove()
    assert model.config._attn_implementation == own
    assert torch.equal(model(ids).logits, expected)


def test_close_lets_go_of_model_and_cache() -> None:
    model = tiny_models.random_model(CONFIGS["llama"]())
    runner = BatchedRunner(model, num_blocks=8, block_size=4)
    engine = Engine(runner)
    engine.add(make_sequence("one", (5, 6, 7), SamplingParams(max_tokens=3, seed=0)))
    run_to_end(engine)
    cache: Any = runner._cache
    seen = [weakref.ref(model), *map(weakref.ref, cache.keys.values())]
    assert len(seen) == 4
    del model
    runner.close()
    runner.close()
    gc.collect()
    assert [ref() for ref in seen] == [None] * 4


def test_an_ended_sequence_is_not_kept() -> None:
    engine = make_engine("llama")
    sequence = make_sequence("one", (5, 6, 7), SamplingParams(max_tokens=3, seed=0))
    engine.add(sequence)
    run_to_end(engine)
    seen = weakref.ref(sequence)
    del sequence
    gc.collect()
    assert seen() is None


PROMPTS_OF_PEOPLE = (
    "The capital of France is",
    "Once upon a time there was a small",
    "def fibonacci(n):",
    "Once upon a time there was a small robot who wanted to learn how to",
)


@pytest.mark.model
@pytest.mark.timeout(400)
@pytest.mark.parametrize("attention", BLOCK_SIZES)
def test_default_model_equals_generate(default_model: LoadedModel, attention: str) -> None:
    model, tokenizer = default_model.model, default_model.tokenizer
    prompts = [tokenizer.encode(text) for text in PROMPTS_OF_PEOPLE]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
        )
        expected.append(output[0, len(prompt) :].tolist())
    own_attention = model.config._attn_implementation
    runner = BatchedRunner(
        model, attention=attention_named(attention), num_blocks=40, max_batch_tokens=20
    )
    engine = Engine(runner)
    params = SamplingParams(temperature=0.0, max_tokens=24, seed=0)
    sequences = [make_sequence(str(n), tuple(p), params) for n, p in enumerate(prompts)]
    for sequence in sequences:
        engine.add(sequence)
        engine.step()
    run_to_end(engine)
    runner.close()
    model.set_attn_implementation(own_attention)
    assert [output_ids(sequence) for sequence in sequences] == expected


@pytest.mark.model
@pytest.mark.timeout(400)
def test_a_bfloat16_crowd_is_as_near_to_the_truth_as_a_single_run(
    default_model: LoadedModel,
) -> None:
    """Both round after each layer, in other places; float32 tells which is how far off.

    The likeliest tokens are compared, whose probabilities choose. Measured: the crowd is off by
    0.17 at most, a single run by 0.27.
    """
    backend = load_backend(ModelConfig(dtype="bfloat16"))
    single = load_model(ModelConfig(dtype="bfloat16"), on_progress=lambda *_: None).model
    prompts = [backend.tokenizer.encode(text) for text in PROMPTS_OF_PEOPLE]
    engine = Engine(backend.runner)
    params = SamplingParams(temperature=0.0, max_tokens=1, seed=0, logprobs=20)
    crowd = [make_sequence(str(n), tuple(p), params) for n, p in enumerate(prompts)]
    for sequence in crowd:
        engine.add(sequence)
    run_to_end(engine)
    backend.runner.close()
    crowd_errors, single_errors = [], []
    for sequence, prompt in zip(crowd, prompts, strict=True):
        [token] = sequence.generation.tokens
        assert token.logprobs is not None
        top = {logprob.token_id: logprob.logprob for logprob in token.logprobs.top}
        with torch.inference_mode():
            rounded, true = (
                model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(dim=-1)[list(top)]
                for model in (single, default_model.model)
            )
        crowd_errors.append(float((torch.tensor(list(top.values())) - true).abs().max()))
        single_errors.append(float((rounded - true).abs().max()))
    assert max(crowd_errors) < 1.5 * max(single_errors)
    assert max(crowd_errors) < 0.3
