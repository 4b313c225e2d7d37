"""Tools and reasoning through the whole engine: the script writes what a model would."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from streaming import (
    AnswerText,
    Backend,
    ChatMessage,
    ChatPrompt,
    Generation,
    GenerationRequest,
    Grammar,
    GrammarKind,
    OutputFormat,
    OutputParser,
    Piece,
    ReasoningText,
    SamplingParams,
    Tool,
    ToolArguments,
    ToolCall,
    ToolCallEnded,
    ToolCallStarted,
    ToolChoice,
    ToolMode,
)
from streaming.backends.scripted import ByteTokenizer, ScriptMatcher, say, scripted_backend
from streaming.chat.format import HERMES, THINK
from streaming.errors import InvalidRequest
from streaming.output_constraint import GrammarMatcher, OutputConstraint
from tests.support import collect, finish_reason, running_engine

WEATHER = Tool("weather", "Tells the weather.", '{"type": "object"}')
TIME = Tool("time", "Tells the time.", '{"type": "object"}')
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
CALL_PIECES: list[Piece] = [
    ToolCallStarted(0, "weather"),
    ToolArguments(0, '{"city": "Köln"}'),
    ToolCallEnded(0),
]


def with_tools(
    *, choice: ToolChoice | None = None, tools: tuple[Tool, ...] = (WEATHER, TIME), **params: object
) -> GenerationRequest:
    prompt = ChatPrompt(
        (ChatMessage("user", "how is it?"),), tools=tools, tool_choice=choice or ToolChoice()
    )
    return GenerationRequest(prompt=prompt, params=SamplingParams(**params))  # type: ignore[arg-type]


async def answer(backend: Backend, request: GenerationRequest) -> Generation:
    async with running_engine(backend) as engine:
        generation = await engine.submit(request)
        await collect(engine, generation)
    return generation


def pieces_of(generation: Generation) -> list[Piece]:
    parser = OutputParser(generation.output_format)
    return [*parser.feed(generation.text), *parser.flush()]


async def test_a_text_and_two_calls_end_with_tool_calls():
    backend = scripted_backend(say(f"I look.\n{CALL}\n{OTHER_CALL}"))
    generation = await answer(backend, with_tools())
    assert finish_reason(generation) == "tool_calls"
    assert generation.output_format == OutputFormat(HERMES)
    assert pieces_of(generation) == [
        AnswerText("I look."),
        *CALL_PIECES,
        ToolCallStarted(1, "time"),
        ToolArguments(1, "{}"),
        ToolCallEnded(1),
    ]


async def test_arguments_come_as_they_are_written():
    generation = await answer(scripted_backend(say(CALL)), with_tools())
    parser = OutputParser(generation.output_format)
    pieces = list(itertools.chain(*(parser.feed(token.text) for token in generation.tokens)))
    arguments = [piece.text for piece in pieces if isinstance(piece, ToolArguments)]
    assert arguments == list('{"city": "Köln"}')


async def test_reasoning_comes_first():
    backend = scripted_backend(say(f"<think>\nhm\n</think>\n\nI look.\n{CALL}"), reasons=True)
    generation = await answer(backend, with_tools())
    assert finish_reason(generation) == "tool_calls"
    assert pieces_of(generation) == [ReasoningText("hm"), AnswerText("I look."), *CALL_PIECES]


async def test_reasoning_may_begin_in_the_prompt():
    backend = scripted_backend(say(f"hm\n</think>\n{CALL}"), starts_in_reasoning=True)
    generation = await answer(backend, with_tools())
    assert generation.output_format == OutputFormat(HERMES, THINK, starts_in_reasoning=True)
    assert pieces_of(generation) == [ReasoningText("hm"), *CALL_PIECES]


async def test_an_answer_without_a_call_stops():
    generation = await answer(scripted_backend(say("Well <tool_ca")), with_tools())
    assert finish_reason(generation) == "stop"
    assert pieces_of(generation) == [AnswerText("Well"), AnswerText(" <tool_ca")]


@pytest.mark.parametrize("num_bytes_left", [1, 15, 20])
async def test_a_call_that_max_tokens_cuts_is_no_call(num_bytes_left: int):
    num_bytes = len(CALL.encode()) - num_bytes_left
    generation = await answer(scripted_backend(say(CALL)), with_tools(max_tokens=num_bytes))
    assert finish_reason(generation) == "length"
    assert generation.text == CALL.encode()[:num_bytes].decode()


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("Köln", "stop"),  # inside of the first call
        ("{}}\n</tool_call>", "stop"),  # inside of the second one
        ("</tool_call>\n<tool_call>", "tool_calls"),  # between them
    ],
)
async def test_a_stop_string_inside_a_call_leaves_it_incomplete(stop: str, expected: str):
    backend = scripted_backend(say(f"{CALL}\n{OTHER_CALL}"))
    generation = await answer(backend, with_tools(stop=(stop,)))
    assert finish_reason(generation) == expected


@pytest.mark.parametrize(
    "request_", [with_tools(choice=ToolChoice(ToolMode.NONE)), with_tools(tools=())]
)
async def test_without_tools_everything_is_text(request_: GenerationRequest):
    generation = await answer(scripted_backend(say(CALL)), request_)
    assert finish_reason(generation) == "stop"
    assert pieces_of(generation) == [AnswerText(CALL)]


class AnyCompiler:
    """Holds no script to anything."""

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        return [ScriptMatcher() for _ in range(count)]


@pytest.mark.parametrize("text", ['{"a": "<tool_call>"}', "[1]"])
async def test_what_an_answer_of_a_certain_form_quotes_is_no_call(text: str):
    backend = dataclasses.replace(scripted_backend(say(text)), grammars=AnyCompiler())
    generation = await answer(backend, with_tools(grammar=Grammar(GrammarKind.JSON_OBJECT)))
    assert finish_reason(generation) == "stop"
    assert pieces_of(generation) == [AnswerText(text)]


async def test_a_call_may_take_the_place_of_an_answer_of_a_certain_form():
    backend = dataclasses.replace(scripted_backend(say(CALL)), grammars=AnyCompiler())
    generation = await answer(backend, with_tools(grammar=Grammar(GrammarKind.JSON_OBJECT)))
    assert finish_reason(generation) == "tool_calls"
    assert pieces_of(generation) == CALL_PIECES


async def test_choices_of_one_request_each_have_their_calls():
    async with running_engine(scripted_backend(say(CALL, "no", OTHER_CALL))) as engine:
        generations = await engine.submit_all([with_tools()] * 3)
        for generation in generations:
            await collect(engine, generation)
    assert [finish_reason(log) for log in generations] == ["tool_calls", "stop", "tool_calls"]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (with_tools(tools=(WEATHER, WEATHER)), "tools"),
        (with_tools(choice=ToolChoice(names=frozenset({"x"}))), "tool_choice"),
        (with_tools(tools=(), choice=ToolChoice(ToolMode.REQUIRED)), "tool_choice"),
        (with_tools(grammar=Grammar(GrammarKind.JSON_OBJECT)), "response_format"),
    ],
)
async def test_what_cannot_be_served_is_refused_before_it_is_queued(
    request_: GenerationRequest, param: str
):
    async with running_engine(scripted_backend()) as engine:
        with pytest.raises(InvalidRequest) as caught:
            await engine.submit(request_)
        assert caught.value.param == param
        assert engine._store.num_open == 0


def test_the_prompt_has_all_that_was_said():
    messages = (
        ChatMessage("user", "how is it?"),
        ChatMessage("assistant", "I look.", (ToolCall("call_1", "weather", "{}"),)),
        ChatMessage("tool", "sunny", tool_call_id="call_1", name="weather"),
        ChatMessage("assistant", "It is"),
    )
    tokenizer = ByteTokenizer()
    prompt = ChatPrompt(
        messages, tools=(WEATHER,), add_generation_prompt=False, continue_final_message=True
    )
    assert tokenizer.decode(tokenizer.encode_chat(prompt)) == (
        'tool: weather Tells the weather. {"type": "object"}\n'
        "user: how is it?\n"
        'assistant: I look.\n<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>\n'
        "tool: sunny\n"
        "assistant: It is"
    )
