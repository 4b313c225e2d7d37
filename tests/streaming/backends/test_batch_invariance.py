"""With `batch_invariant`, a request's answer is the same to the bit, whatever else is in the batch.

Log probabilities are compared as the floats that they are: no bound, no rounding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from streaming.backends.batched import BatchedRunner
from streaming.backends.loading.model_loader import load_model
from streaming.backends.optimization.verification import optimize, verify
from streaming.config import ModelConfig
from streaming.engine.engine import Engine
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence
from tests.streaming.backends.attentions import BLOCK_SIZES, attention_named, kernels
from tests.streaming.backends.test_batched import CONFIGS, make_sequence, run_to_end
from tests.support import property_test_of

MAX_TOKENS = 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KINDS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=0, logprobs=5),
    "likeliest": SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=0),
    "sampled": SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, seed=11, logprobs=5),
    "nucleus": SamplingParams(
        temperature=1.2, top_p=0.9, top_k=30, max_tokens=MAX_TOKENS, seed=12, logprobs=2
    ),
}
# One stem ends where the first span of keys does, so that answers to it cross over.
STEMS = (
    (5, 6, 7, 8, 9, 10, 11, 12, 13),
    (20,),
    tuple(3 + index * 7 % 90 for index in range(124)),
)


@cache
def invariant_model(name: str, dtype: str, attention: str) -> Any:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=DTYPES[dtype]).eval()
    make_invariant(model, attention)
    return model


def make_invariant(model: Any, attention: str) -> None:
    verify(model, attention=attention_named(attention))
    optimize(
        model,
        attention=attention_named(attention),
        kernels=kernels() if attention == "native" else None,
        batch_invariant=True,
    )


def make_engine(
    name: str, dtype: str, attention: str, *, num_tokens: int, max_batch_tokens: int
) -> Engine:
    block_size = BLOCK_SIZES[attention]
    runner = BatchedRunner(
        invariant_model(name, dtype, attention),
        attention=attention_named(attention),
        num_blocks=num_tokens // block_size,
        block_size=block_size,
        max_num_seqs=6,
        max_batch_tokens=max_batch_tokens,
    )
    return Engine(runner)


def said(sequence: Sequence) -> list[Any]:
    """Return each token with its log probabilities."""
    tokens = sequence.generation.tokens
    return [(token.token_id, token.logprobs) for token in tokens]


@cache
def alone(name: str, dtype: str, attention: str, prompt: tuple[int, ...], kind: str) -> list[Any]:
    """Return what is said to nobody but this one, whose prompt is read in one go."""
    engine = make_engine(name, dtype, attention, num_tokens=256, max_batch_tokens=256)
    sequence = make_sequence("alone", prompt, KINDS[kind])
    engine.add(sequence)
    run_to_end(engine)
    return said(sequence)


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.tuples(
                st.builds(
                    lambda stem, end: stem + end,
                    st.sampled_from(STEMS),
                    st.lists(st.integers(3, 96), max_size=5).map(tuple),
                ),
                st.sampled_from(sorted(KINDS)),
            ),
        ),
        st.tuples(st.just("step"), st.integers(1, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 11)),
    ),
    min_size=4,
    max_size=20,
)


@pytest.mark.slow
@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
@property_test_of(6)
@given(
    events=EVENTS,
    num_tokens=st.sampled_from([176, 280, 1000]),
    budget=st.sampled_from([7, 32, 200]),
)
def test_any_traffic_leaves_every_bit_as_it_is_alone(
    name: str,
    dtype: str,
    attention: str,
    events: list[tuple[str, Any]],
    num_tokens: int,
    budget: int,
) -> None:
    engine = make_engine(name, dtype, attention, num_tokens=num_tokens, max_batch_tokens=budget)
    added: list[tuple[Sequence, tuple[int, ...], str]] = []
    for event, value in events:
        if event == "add" and len(added) < 12:
            prompt, kind = value
            sequence = make_sequence(str(len(added)), prompt, KINDS[kind])
            added.append((sequence, prompt, kind))
            engine.add(sequence)
        elif event == "cancel" and value < len(added):
            engine.cancel(str(value))
        elif event == "step":
            for _ in range(value):
                engine.step()
    run_to_end(engine)
    for sequence, prompt, kind in added:
        actual = said(sequence)
        assert actual == alone(name, dtype, attention, prompt, kind)[: len(actual)]


@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.slow
def test_who_lost_its_place_says_the_same_again(dtype: str, attention: str) -> None:
    engine = make_engine("llama", dtype, attention, num_tokens=160, max_batch_tokens=64)
    prompts = [STEMS[2], (*STEMS[0], 30), (*STEMS[0], 31), (40, 41)]
    sequences = [make_sequence(str(p), p, KINDS["sampled"]) for p in prompts]
    for sequence in sequences:
        engine.add(sequence)
    run_to_end(engine)
    assert engine.num_preemptions > 0
    assert [said(s) for s in sequences] == [
        alone("llama", dtype, attention, p, "sampled") for p in prompts
    ]


@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prefix_from_the_cache_is_as_good_as_one_that_was_read(
    dtype: str, attention: str
) -> None:
    engine = make_engine("gemma3", dtype, attention, num_tokens=400, max_batch_tokens=32)
    for number in range(2):
        sequence = make_sequence(str(number), (*STEMS[2], 50, 51, 52, 53, 54), KINDS["greedy"])
        engine.add(sequence)
        run_to_end(engine)
        assert said(sequence) == alone("gemma3", dtype, attention, sequence.prompt_ids, "greedy")
    assert sequence.generation.usage.cached_tokens == 128


@pytest.mark.model
@pytest.mark.timeout(600)
@pytest.mark.parametrize("attention", BLOCK_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_model_says_the_same_alone_and_in_a_crowd(dtype: str, attention: str) -> None:
    loaded = load_model(ModelConfig(dtype=dtype), on_progress=lambda *_: None)
    make_invariant(loaded.model, attention)
    prompts = [
        tuple(loaded.tokenizer.encode(text))
        for text in (
            "The capital of France is",
            "Once upon a time there was a small robot who wanted to learn how to",
            "def fibonacci(n):",
            "One, two, three. " * 30,
        )
    ]
    answers: list[list[Any]] = []
    for budget, num_seqs in ((512, 1), (40, 40)):
        runner = BatchedRunner(
            loaded.model,
            attention=attention_named(attention),
            num_blocks=200,
            max_num_seqs=num_seqs,
            max_batch_tokens=budget,
        )
        engine = Engine(runner)
        sequences = []
        for kind in ("greedy", "sampled"):
            for prompt in prompts:
                sequences.append(make_sequence(f"{kind} {prompt}", prompt, KINDS[kind]))
                engine.add(sequences[-1])
                engine.step()
        run_to_end(engine)
        answers.append([said(sequence) for sequence in sequences])
    assert answers[0] == answers[1]
