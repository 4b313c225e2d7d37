"""Tool calls from real forward passes, on both runners, are valid if they end with `tool_calls`."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jsonschema
import pytest

from streaming.admission.input_processor import InputProcessor
from streaming.backend import Backend, ModelInfo, ModelRunner
from streaming.backends.batched import BatchedRunner
from streaming.backends.generate import GenerateRunner
from streaming.backends.grammar.grammar_compiler import LlguidanceCompiler
from streaming.backends.loading.model_loader import LoadedModel
from streaming.backends.tokenization.tokenizer import FastTokenizer
from streaming.chat.messages import ANY_TOOL, ChatMessage, Tool, ToolCall, ToolChoice, ToolMode
from streaming.chat.output_parser import (
    AnswerText,
    OutputParser,
    Piece,
    ReasoningText,
    ToolArguments,
    ToolCallEnded,
    ToolCallStarted,
)
from streaming.log.generation import Generation
from streaming.output_constraint import AnswerGrammar, Grammar, GrammarKind
from streaming.request import ChatPrompt, GenerationRequest
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence
from tests.streaming.backends import template_texts, tiny_models
from tests.streaming.backends.rig import EngineRig, ending

EOS = frozenset({2})
REQUIRED = ToolChoice(ToolMode.REQUIRED)
PICK = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "gre<|im_end|>n", "blü"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["color", "flags"],
    "additionalProperties": False,
}
TOOLS = (Tool("pick", "Picks.", json.dumps(PICK)), Tool("stop-it", "Stops.", ""))
SCHEMAS = {"pick": PICK, "stop-it": {"type": "object", "maxProperties": 0}}
ASK = (ChatMessage("user", "go"),)

TEMPLATES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "plain": (template_texts.PLAIN, (), ()),
    "qwen": (template_texts.QWEN_3, (), template_texts.IM_MARKS),
    "llama": (template_texts.LLAMA, template_texts.LLAMA_MARKS, ()),
    "mistral_3": (template_texts.MISTRAL_3, template_texts.MISTRAL_MARKS, ()),
    "mistral_11": (template_texts.MISTRAL_11, template_texts.MISTRAL_MARKS, ()),
    "deepseek": (template_texts.DEEPSEEK, template_texts.DEEPSEEK_MARKS, ()),
}


@cache
def parts(name: str) -> tuple[ModelInfo, FastTokenizer, LlguidanceCompiler]:
    template, special, added = TEMPLATES[name]
    hf = template_texts.tokenizer_of(template, special=special, added=added)
    info = ModelInfo(
        model_id="tiny",
        backend="batched",
        dtype="float32",
        device="cpu",
        max_model_len=4096,
        vocab_size=len(hf),
        eos_token_ids=EOS,
        has_chat_template=True,
    )
    compiler = LlguidanceCompiler(
        hf.backend_tokenizer, eos_token_ids=EOS, vocab_size=info.vocab_size
    )
    return info, FastTokenizer(hf, vocab_size=info.vocab_size), compiler


def make_model(name: str) -> Any:
    config = tiny_models.llama_config(parts(name)[0].vocab_size)
    config.max_position_embeddings = 4096
    return tiny_models.random_model(config)


def batched_runner(model: Any) -> ModelRunner:
    return BatchedRunner(model, num_blocks=1200, max_num_seqs=16)


@pytest.fixture
def make_rig() -> Iterator[Callable[..., EngineRig]]:
    rigs: list[EngineRig] = []

    def make(name: str, make_runner: Callable[[Any], ModelRunner] = batched_runner) -> EngineRig:
        info, tokenizer, compiler = parts(name)
        runner = make_runner(make_model(name))
        rigs.append(
            EngineRig(Backend(info=info, tokenizer=tokenizer, runner=runner, grammars=compiler))
        )
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.backend.runner.close()


def add(rig: EngineRig, request: GenerationRequest) -> Generation:
    """Admit a request as an `AsyncEngine` does, and put it into the engine."""
    processor = InputProcessor(rig.backend)
    processor.check(request)
    encoded = processor.encode(request.prompt)
    constraint = processor.constraint(request, encoded)
    matcher = None if constraint is None else processor.compile(constraint, count=1)[0]
    output_format = encoded.output_format
    if isinstance(constraint, AnswerGrammar):
        output_format = constraint.output_format
    sequence = Sequence(
        generation=Generation(
            generation_id=f"gen_{next(_numbers)}",
            caller="anyone",
            model="tiny",
            created_at=0.0,
            submitted_at=0.0,
            prompt_tokens=len(encoded.token_ids),
            output_format=output_format,
        ),
        prompt_ids=encoded.token_ids,
        params=processor.resolve_params(request.params, num_prompt_tokens=len(encoded.token_ids)),
        eos_token_ids=rig.backend.info.eos_token_ids,
        decode=rig.backend.tokenizer.decode,
        deadline_at=float("inf"),
        matcher=matcher,
    )
    rig.engine.add(sequence)
    return sequence.generation


_numbers = itertools.count()


def run_all(rig: EngineRig, requests: list[GenerationRequest]) -> list[Generation]:
    logs = [add(rig, request) for request in requests]
    while rig.engine.has_work:
        rig.engine.step()
    rig.engine.check_integrity()
    return logs


def ask(
    choice: ToolChoice = ANY_TOOL,
    *,
    seed: int = 0,
    messages: tuple[ChatMessage, ...] = ASK,
    tools: tuple[Tool, ...] = TOOLS,
    parallel: bool = True,
    **params: Any,
) -> GenerationRequest:
    prompt = ChatPrompt(messages, tools=tools, tool_choice=choice, parallel_tool_calls=parallel)
    rules = {"temperature": 1.0, "max_tokens": 500, **params}
    return GenerationRequest(prompt=prompt, params=SamplingParams(seed=seed, **rules))


def pieces_of(log: Generation) -> list[Piece]:
    """Return the pieces of the answer, parsed token by token."""
    parser = OutputParser(log.output_format)
    pieces = itertools.chain(*(parser.feed(token.text) for token in log.tokens))
    return [*pieces, *parser.flush()]


def calls_of(log: Generation) -> list[tuple[str, Any]]:
    """Return the complete calls; assert that each is valid by its tool's schema."""
    calls: list[tuple[str, Any]] = []
    name = arguments = ""
    for piece in pieces_of(log):
        match piece:
            case ToolCallStarted():
                name, arguments = piece.name, ""
            case ToolArguments():
                arguments += piece.text
            case ToolCallEnded():
                calls.append((name, json.loads(arguments)))
            case AnswerText() | ReasoningText():
                pass
    for name, value in calls:
        jsonschema.validate(value, SCHEMAS[name])
    return calls


# A random model writes anything that the grammar allows.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "llama", "mistral_3", "mistral_11"])
def test_a_forced_call_is_valid_every_time(name: str, make_rig: Callable[..., EngineRig]):
    logs = run_all(make_rig(name), [ask(REQUIRED, seed=seed) for seed in range(8)])
    for log in logs:
        calls = calls_of(log)
        assert calls
        assert not any(isinstance(piece, AnswerText) for piece in pieces_of(log))
        assert ending(log) == "tool_calls" or len(log.tokens) == 500
    assert {name for log in logs for name, _ in calls_of(log)} == {"pick", "stop-it"}


def test_generate_makes_valid_calls_too(make_rig: Callable[..., EngineRig]):
    rig = make_rig("plain", GenerateRunner)
    logs = run_all(rig, [ask(REQUIRED, seed=seed, parallel=False) for seed in range(4)])
    assert [ending(log) for log in logs] == ["tool_calls"] * 4
    assert [len(calls_of(log)) for log in logs] == [1] * 4


def test_a_forced_call_of_one_tool_is_the_whole_answer(make_rig: Callable[..., EngineRig]):
    choice = ToolChoice(ToolMode.REQUIRED, frozenset({"stop-it"}))
    [log] = run_all(make_rig("mistral_11"), [ask(choice, parallel=False)])
    assert "".join(log.text.split()) == "[TOOL_CALLS]stop-it[ARGS]{}"
    assert calls_of(log) == [("stop-it", {})]
    assert ending(log) == "tool_calls"
    # Marks are single tokens, and the text includes them.
    _, tokenizer, _ = parts("mistral_11")
    marks = [token.text for token in log.tokens if token.text.startswith("[")]
    assert marks == ["[TOOL_CALLS]", "[ARGS]"]
    assert [token.token_id for token in log.tokens if token.text in marks] == tokenizer.encode(
        "[TOOL_CALLS][ARGS]"
    )


@pytest.mark.parametrize("name", ["qwen", "deepseek"])
def test_a_reasoning_model_reasons_before_the_grammar_applies(
    name: str, make_rig: Callable[..., EngineRig]
):
    logs = run_all(
        make_rig(name),
        [
            *(ask(REQUIRED, seed=seed, logit_bias=_short_thoughts(name)) for seed in range(4)),
            *(
                ask(
                    tools=(),
                    seed=seed,
                    logit_bias=_short_thoughts(name),
                    grammar=Grammar(GrammarKind.REGEX, "[ab]{4}"),
                )
                for seed in range(4)
            ),
        ],
    )
    assert [ending(log) for log in logs] == ["tool_calls"] * 4 + ["stop"] * 4
    assert all(calls_of(log) for log in logs[:4])
    answers = [
        "".join(piece.text for piece in pieces_of(log) if isinstance(piece, AnswerText))
        for log in logs[4:]
    ]
    assert all(len(text) == 4 and set(text) <= {"a", "b"} for text in answers)
    assert any(isinstance(piece, ReasoningText) for log in logs for piece in pieces_of(log))


def _short_thoughts(name: str) -> dict[int, float]:
    """Return a bias that starts reasoning and keeps it, and lists of calls, short."""
    _, tokenizer, _ = parts(name)
    begin, end = tokenizer.encode("<think></think>")
    return {begin: 100.0, end: 5.0, next(iter(EOS)): 100.0}


def test_arguments_are_streamed_token_by_token(make_rig: Callable[..., EngineRig]):
    choice = ToolChoice(ToolMode.REQUIRED, frozenset({"pick"}))
    [log] = run_all(make_rig("mistral_3"), [ask(choice, parallel=False)])
    pieces = [piece.text for piece in pieces_of(log) if isinstance(piece, ToolArguments)]
    assert len(pieces) > 20
    assert max(map(len, pieces)) <= len("<|im_end|>")


def test_a_truncated_call_is_no_call(make_rig: Callable[..., EngineRig]):
    [log] = run_all(make_rig("plain"), [ask(REQUIRED, max_tokens=30)])
    assert ending(log) == "length"
    assert calls_of(log) == []


@pytest.mark.slow
def test_a_call_is_the_same_in_a_batch_and_alone(make_rig: Callable[..., EngineRig]):
    requests = [ask(REQUIRED, seed=seed) for seed in range(3)]
    alone = [run_all(make_rig("plain"), [request])[0].text for request in requests]
    crowd = run_all(make_rig("plain"), [*requests, ask(seed=9), ask(tools=(), seed=8)])
    assert [log.text for log in crowd[:3]] == alone


# The default model.

WEATHER = Tool(
    "get_weather",
    "Tells the current weather in a city.",
    json.dumps(
        {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
            "required": ["city"],
        }
    ),
)
ADD = Tool(
    "add",
    "Adds two numbers.",
    json.dumps(
        {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        }
    ),
)
SCHEMAS |= {tool.name: json.loads(tool.parameters) for tool in (WEATHER, ADD)}
EARLIER = (
    ChatMessage("user", "What is the weather in Rome?"),
    ChatMessage("assistant", "", (ToolCall("call_1", "get_weather", '{"city": "Rome"}'),)),
    ChatMessage("tool", "Sunny, 24 degrees.", tool_call_id="call_1"),
    ChatMessage("assistant", "It is sunny in Rome, 24 degrees."),
)


@pytest.fixture
def default_rig(default_model: LoadedModel) -> Iterator[EngineRig]:
    # The batched runner replaces the model's attention, and other tests share this model.
    runner = BatchedRunner(copy.deepcopy(default_model.model), num_blocks=600)
    yield EngineRig(
        Backend(
            info=default_model.info,
            tokenizer=default_model.tokenizer,
            runner=runner,
            grammars=default_model.grammars,
        )
    )
    runner.close()


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_default_model_makes_a_valid_call_for_any_question(default_rig: EngineRig):
    questions = ("What is the weather in Paris?", "What is 17 plus 25?", "Who are you?", "?!")
    named = ToolChoice(ToolMode.REQUIRED, frozenset({"add"}))
    logs = run_all(
        default_rig,
        [
            ask(
                choice,
                seed=seed,
                messages=(user(question),),
                tools=(WEATHER, ADD),
                parallel=False,
                max_tokens=200,
            )
            for question in questions
            for choice in (REQUIRED, named)
            for seed in (1, 2)
        ],
    )
    assert {ending(log) for log in logs} == {"tool_calls"}
    assert [len(calls_of(log)) for log in logs] == [1] * len(logs)
    assert all(calls_of(log)[0][0] == "add" for log in logs[2::4] + logs[3::4])


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_default_model_calls_a_tool_only_if_it_helps(
    default_rig: EngineRig,
):
    questions = ("What is the weather in Paris?", "Thank you!")
    call, talk = run_all(
        default_rig,
        [
            ask(
                messages=(*EARLIER, user(question)),
                tools=(WEATHER, ADD),
                temperature=0.0,
                max_tokens=80,
            )
            for question in questions
        ],
    )
    assert ending(call) == "tool_calls"
    assert calls_of(call) == [("get_weather", {"city": "Paris"})]
    assert ending(talk) == "stop"
    assert [type(piece) for piece in pieces_of(talk)] == [AnswerText] * len(pieces_of(talk))
