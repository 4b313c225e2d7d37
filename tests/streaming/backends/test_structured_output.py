"""Grammars on both runners: text that ends with `stop` is valid."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import pytest

from streaming.backend import Backend, ModelInfo
from streaming.backends.batched import BatchedRunner
from streaming.backends.generate import GenerateRunner
from streaming.backends.grammar.grammar_compiler import LlguidanceCompiler
from streaming.backends.loading.model_loader import LoadedModel
from streaming.backends.tokenization.tokenizer import FastTokenizer
from streaming.chat.messages import ChatMessage
from streaming.log.generation import Failed, Generation
from streaming.output_constraint import Grammar, GrammarKind
from streaming.request import ChatPrompt
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence
from tests.streaming.backends import tiny_models
from tests.streaming.backends.rig import EngineRig, ending, token_ids

EOS = frozenset({2})
VOCAB_SIZE = 269
"""More than the 261 ids of the tokenizer, since models have padding rows."""
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dög", 7, None]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "kind", "tags"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"enum": [1, "é", "日本"]}, "minItems": 2, "maxItems": 4},
    {"anyOf": [{"const": "<|im_end|>"}, {"type": "object", "properties": {}}], "maxProperties": 1},
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
    {"type": "string", "format": "date"},
    {"type": "number", "minimum": -2, "exclusiveMaximum": 2},
    {
        "$defs": {
            "node": {"anyOf": [{"const": 0}, {"$ref": "#/$defs/pair"}]},
            "pair": {
                "type": "array",
                "prefixItems": [{"$ref": "#/$defs/node"}],
                "minItems": 1,
                "items": False,
            },
        },
        "$ref": "#/$defs/node",
    },
]


def schema(source: Any) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(source))


def regex(source: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, source)


def make_model() -> Any:
    return tiny_models.random_model(tiny_models.llama_config(VOCAB_SIZE))


@cache
def parts() -> tuple[ModelInfo, FastTokenizer, LlguidanceCompiler]:
    info = ModelInfo(
        model_id="tiny",
        backend="batched",
        dtype="float32",
        device="cpu",
        max_model_len=256,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=EOS,
        has_chat_template=True,
    )
    tokenizer = tiny_models.hf_tokenizer()
    compiler = LlguidanceCompiler(
        tokenizer.backend_tokenizer, eos_token_ids=EOS, vocab_size=VOCAB_SIZE
    )
    return info, FastTokenizer(tokenizer, vocab_size=VOCAB_SIZE), compiler


def batched(*, num_blocks: int = 400, model: Any = None) -> EngineRig:
    info, tokenizer, compiler = parts()
    runner = BatchedRunner(
        model or make_model(), num_blocks=num_blocks, block_size=4, max_num_seqs=8
    )
    return EngineRig(Backend(info=info, tokenizer=tokenizer, runner=runner, grammars=compiler))


@pytest.fixture
def generate() -> Iterator[EngineRig]:
    info, tokenizer, compiler = parts()
    runner = GenerateRunner(make_model())
    yield EngineRig(Backend(info=info, tokenizer=tokenizer, runner=runner, grammars=compiler))
    runner.close()


def run_to_end(rig: EngineRig) -> None:
    while rig.engine.has_work:
        rig.engine.step()
        rig.engine.check_integrity()


def hot(grammar: Grammar | None, seed: int, **params: Any) -> SamplingParams:
    rules = {"temperature": 1.5, "max_tokens": 200, **params}
    return SamplingParams(grammar=grammar, seed=seed, **rules)


def is_valid(text: str, source: Any) -> bool:
    value = json.loads(text)
    validator = jsonschema.Draft202012Validator(
        source, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    return bool(validator.is_valid(value))


@pytest.mark.parametrize("source", SCHEMAS, ids=range(len(SCHEMAS)))
def test_text_that_stops_is_valid_by_its_schema(source: dict[str, Any]) -> None:
    """A random model at a high temperature writes anything that the grammar allows."""
    rig = batched()
    sequences = [rig.add(hot(schema(source), seed), eos_token_ids=EOS) for seed in range(16)]
    run_to_end(rig)
    endings = [ending(sequence.generation) for sequence in sequences]
    assert set(endings) <= {"stop", "length"}
    assert endings.count("stop") >= 4, "truncated texts prove little"
    stopped = [
        s.generation.text for s, how in zip(sequences, endings, strict=True) if how == "stop"
    ]
    assert [text for text in stopped if not is_valid(text, source)] == []
    assert len({*stopped}) > 1, "a model that repeats itself proves little"


@pytest.mark.parametrize(
    "source", ["[a-f]{3}-[0-9]{2}", "(yes|no|vielleicht|日本|😀)+", "", r"<\|im_end\|>|\{"]
)
def test_text_that_stops_matches_its_regex(source: str) -> None:
    rig = batched()
    sequences = [rig.add(hot(regex(source), seed), eos_token_ids=EOS) for seed in range(8)]
    run_to_end(rig)
    assert {ending(sequence.generation) for sequence in sequences} == {"stop"}
    for sequence in sequences:
        assert re.fullmatch(source, sequence.generation.text)


def test_text_that_stops_matches_its_lark_grammar() -> None:
    rig = batched()
    grammar = Grammar(GrammarKind.LARK, 'start: "(" start? ")" | "[" start? "]"')
    sequences = [rig.add(hot(grammar, seed), eos_token_ids=EOS) for seed in range(8)]
    run_to_end(rig)
    for sequence in sequences:
        assert ending(sequence.generation) == "stop"
        text = sequence.generation.text
        while "()" in text or "[]" in text:
            text = text.replace("()", "").replace("[]", "")
        assert text == ""


def test_json_object_writes_nested_objects() -> None:
    rig = batched()
    # Favour braces over letters: otherwise the names of a random model never end.
    bias = {parts()[1].encode(letter)[0]: 12.0 for letter in '{}":1'}
    params = hot(Grammar(GrammarKind.JSON_OBJECT), 0, logit_bias=bias)
    generations = [
        rig.run(params, prompt=f"prompt {number}", eos_token_ids=EOS) for number in range(6)
    ]
    stopped = [log.text for log in generations if ending(log) == "stop"]
    assert stopped
    assert all(isinstance(json.loads(text), dict) for text in stopped)


def test_a_text_cut_by_max_tokens_ends_with_length() -> None:
    params = hot(schema(PERSON), 1, max_tokens=5)
    generation = batched().run(params, eos_token_ids=EOS)
    assert (ending(generation), len(generation.tokens)) == ("length", 5)


def test_a_text_complete_at_max_tokens_ends_with_stop() -> None:
    generation = batched().run(hot(regex("[a-f]{5}"), 1, max_tokens=5), eos_token_ids=EOS)
    assert (ending(generation), len(generation.tokens)) == ("stop", 5)


@pytest.mark.parametrize("params", [{"ignore_eos": True}, {"min_tokens": 150}])
def test_a_complete_text_ends_despite_other_parameters(params: dict[str, Any]) -> None:
    rig = batched()
    for seed in range(4):
        generation = rig.run(hot(regex("a|b?"), seed, **params), eos_token_ids=EOS)
        assert ending(generation) == "stop"
        assert generation.text in ("a", "b", "")


def test_min_tokens_continues_a_text_if_the_grammar_allows_it() -> None:
    rig = batched()
    for seed in range(4):
        generation = rig.run(hot(regex("[a-f]{1,40}"), seed, min_tokens=20), eos_token_ids=EOS)
        assert ending(generation) == "stop"
        assert len(generation.text) >= 20


def test_stop_strings_still_end_the_text() -> None:
    bias = {parts()[1].encode("c")[0]: 3.0}
    params = hot(regex("[a-f]{100}"), 3, stop=("c",), logit_bias=bias)
    generation = batched().run(params, eos_token_ids=EOS)
    assert ending(generation) == "stop"
    assert re.fullmatch("[abdef]{0,99}", generation.text)


def crowd(rig: EngineRig, *, with_grammars: bool) -> tuple[list[Sequence], list[Sequence]]:
    """Run rows without a grammar, with constrained rows between them; return both."""
    free, constrained = [], []
    for seed in range(4):
        params = hot(None, seed, max_tokens=40, top_p=0.9, logprobs=2)
        free.append(rig.add(params, prompt=f"free {seed}"))
        if with_grammars:
            params = hot(schema(PERSON), seed)
            constrained.append(rig.add(params, prompt=f"constrained {seed}", eos_token_ids=EOS))
    run_to_end(rig)
    return free, constrained


def test_constrained_rows_do_not_change_free_rows() -> None:
    alone, _ = crowd(batched(), with_grammars=False)
    mixed, constrained = crowd(batched(), with_grammars=True)
    assert [token_ids(s.generation) for s in mixed] == [token_ids(s.generation) for s in alone]
    for sequence in constrained:
        if ending(sequence.generation) == "stop":
            assert is_valid(sequence.generation.text, PERSON)


def test_a_preempted_text_resumes_its_grammar() -> None:
    def run(num_blocks: int) -> tuple[int, list[str]]:
        rig = batched(num_blocks=num_blocks)
        sequences = [
            rig.add(hot(schema(PERSON), seed, max_tokens=80), prompt=f"{seed}", eos_token_ids=EOS)
            for seed in range(6)
        ]
        run_to_end(rig)
        return rig.engine.num_preemptions, [s.generation.text for s in sequences]

    unhindered, hindered = run(400), run(24)
    assert unhindered[0] == 0
    assert hindered[0] > 0
    assert hindered[1] == unhindered[1]


@pytest.mark.parametrize("source", SCHEMAS, ids=range(len(SCHEMAS)))
def test_both_backends_write_the_same_text(source: dict[str, Any], generate: EngineRig) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=60, seed=0, grammar=schema(source))
    logs = [rig.run(params, prompt="tell", eos_token_ids=EOS) for rig in (batched(), generate)]
    assert token_ids(logs[0]) == token_ids(logs[1])
    assert [ending(log) for log in logs] == [ending(logs[0])] * 2


@pytest.mark.slow
def test_generate_samples_valid_json(generate: EngineRig) -> None:
    logs = [generate.run(hot(schema(PERSON), seed), eos_token_ids=EOS) for seed in range(6)]
    stopped = [log.text for log in logs if ending(log) == "stop"]
    assert stopped
    assert all(is_valid(text, PERSON) for text in stopped)


class NothingLeft:
    """Allows nothing."""

    is_done = False

    def mask(self) -> bytes:
        return b""

    def accept(self, token_id: int) -> None:
        raise AssertionError("no token is allowed")


def error_of(sequence: Sequence) -> str:
    """Return the error message of a sequence whose constraints allow no token."""
    outcome = sequence.generation.outcome
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "no_token_allowed"
    return str(outcome.error)


def test_a_dead_end_keeps_the_shared_prefix_in_the_cache() -> None:
    rig = batched()
    system_prompt = "a system prompt that all share "
    first = rig.run(hot(regex("a+"), 0), prompt=system_prompt + "1")
    stuck = rig.add(hot(regex("a+"), 0), prompt=system_prompt + "2")
    stuck.matcher = NothingLeft()
    run_to_end(rig)
    after = rig.run(hot(regex("a+"), 0), prompt=system_prompt + "3")
    assert error_of(stuck) == "response_format: the grammar allows no token here"
    assert first.usage.cached_tokens == 0
    assert after.usage.cached_tokens == stuck.generation.usage.cached_tokens > 20


def test_a_grammar_that_allows_no_token_fails_its_sequence_only() -> None:
    rig = batched()
    stuck = rig.add(hot(regex("a+"), 0))
    stuck.matcher = NothingLeft()
    others = [rig.add(hot(regex("[ab]{9}"), 1)), rig.add(hot(None, 2, max_tokens=9))]
    run_to_end(rig)
    assert error_of(stuck) == "response_format: the grammar allows no token here"
    assert [len(other.generation.tokens) for other in others] == [9, 9]
    assert ending(rig.run(hot(regex("ab"), 0))) == "stop"


def test_generate_fails_a_grammar_that_allows_no_token(generate: EngineRig) -> None:
    stuck = generate.add(hot(regex("a+"), 0))
    stuck.matcher = NothingLeft()
    run_to_end(generate)
    assert error_of(stuck) == "response_format: the grammar allows no token here"
    assert ending(generate.run(hot(regex("ab"), 0))) == "stop"


def answer(rig: EngineRig, question: str, grammar: Grammar) -> Generation:
    prompt_ids = rig.backend.tokenizer.encode_chat(ChatPrompt((ChatMessage("user", question),)))
    params = SamplingParams(temperature=0.0, max_tokens=120, seed=0, grammar=grammar)
    return rig.run(params, prompt=prompt_ids, eos_token_ids=rig.backend.info.eos_token_ids)


@pytest.mark.model
@pytest.mark.timeout(400)
def test_default_model_answers_by_schema(default_model: LoadedModel) -> None:
    # The batched runner replaces the model's attention, and other tests share this model.
    model = copy.deepcopy(default_model.model)
    rig = EngineRig(
        Backend(
            info=default_model.info,
            tokenizer=default_model.tokenizer,
            runner=BatchedRunner(model, num_blocks=32),
            grammars=default_model.grammars,
        )
    )
    city = {
        "type": "object",
        "properties": {
            "city": {"enum": ["London", "Paris", "Rome"]},
            "population_in_millions": {"type": "integer", "minimum": 0, "maximum": 100},
            "languages": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        },
        "required": ["city", "population_in_millions", "languages"],
        "additionalProperties": False,
    }
    log = answer(rig, "Write the capital of France as JSON, with its languages.", schema(city))
    assert ending(log) == "stop"
    assert is_valid(log.text, city)
    assert json.loads(log.text)["city"] == "Paris"
