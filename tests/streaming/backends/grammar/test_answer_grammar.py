"""The grammar allows what the parser reads, for every syntax and every tokenization."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.pre_tokenizers import ByteLevel

from streaming.backends.grammar.answer_grammar import InvalidParameters, arguments_schema
from streaming.backends.grammar.grammar_compiler import LlguidanceCompiler
from streaming.chat.format import (
    DEEPSEEK_R1,
    DEEPSEEK_V3_1,
    HERMES,
    LLAMA,
    MAGISTRAL_THINK,
    MISTRAL_ARGS,
    MISTRAL_LIST,
    THINK,
    TOOL_SYNTAXES,
)
from streaming.chat.messages import MAX_PARALLEL_CALLS, Tool
from streaming.chat.output_parser import (
    AnswerText,
    OutputFormat,
    OutputParser,
    Piece,
    ReasoningText,
    ToolArguments,
    ToolCallEnded,
    ToolCallStarted,
    ToolSyntax,
)
from streaming.errors import InvalidRequest
from streaming.output_constraint import AnswerGrammar, Grammar, GrammarKind, GrammarMatcher
from tests.streaming.backends.template_texts import DEEPSEEK_MARKS, IM_MARKS, MISTRAL_MARKS
from tests.streaming.backends.tiny_models import rust_tokenizer

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Köln", "Oslo"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
}
WEATHER = Tool("weather", "", json.dumps(CITY))
WEATHER_2 = Tool("weather-2", "", "")
TOOLS = (WEATHER, WEATHER_2)
SCHEMAS = {"weather": {**CITY, "additionalProperties": False}, "weather-2": {"maxProperties": 0}}
END = 2
WORDS = (
    *(
        "{",
        "}",
        '{"',
        '{"n',
        'ame":',
        ' "',
        '{"name":',
        '"weather',
        'weather", "',
        '"weather-2", "',
    ),
    *('arguments":', 'parameters":', ' {"', 'city":', '"Oslo"', '"}', "}}", "}}\n", "\n</", "{}"),
    *("<tool", "_call>", "_call>\n", '_call>\n{"', "<th", "ink>", "</", "ink>\n\n", "abc", "\n\n"),
    *("[TOOL", "_CALLS]", "```", "json\n", "[ARGS]", "\n", " ", "<|im_end|", "function"),
    *("<｜tool▁", "calls▁", "call▁", "begin｜>", "end｜>", "sep｜>"),
)
"""Tokens of several characters: marks can begin and end inside them."""


def byte_level(text: str) -> str:
    [(word, _)] = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return word


@cache
def parts(marks: tuple[str, ...]) -> tuple[RustTokenizer, LlguidanceCompiler]:
    """Return a tokenizer of bytes and `WORDS`, with marks as special tokens, and its compiler."""
    words = dict.fromkeys(byte_level(word) for word in WORDS)
    rust = rust_tokenizer([*dict.fromkeys([*sorted(ByteLevel.alphabet()), *words])])
    rust.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    size = rust.get_vocab_size(with_added_tokens=True)
    return rust, LlguidanceCompiler(rust, eos_token_ids={END}, vocab_size=size)


def answer(
    syntax: ToolSyntax | None = HERMES, *, tools: tuple[Tool, ...] = TOOLS, **options: Any
) -> AnswerGrammar:
    output_format = OutputFormat(
        syntax, options.pop("reasoning", None), options.pop("inside", False)
    )
    max_calls = 3 if syntax is not None and syntax.allows_several else 1
    rules = {"max_calls": max_calls, **options}
    return AnswerGrammar(output_format=output_format, tools=tools if syntax else (), **rules)


def matcher_of(grammar: AnswerGrammar, marks: tuple[str, ...] = ()) -> GrammarMatcher:
    [matcher] = parts(marks)[1].compile(grammar)
    return matcher


def allowed(matcher: GrammarMatcher) -> set[int]:
    mask = matcher.mask()
    return {i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1}


def follow(grammar: AnswerGrammar, text: str, marks: tuple[str, ...] = ()) -> GrammarMatcher | None:
    matcher = matcher_of(grammar, marks)
    for token_id in parts(marks)[0].encode(text).ids:
        if token_id not in allowed(matcher):
            return None
        matcher.accept(token_id)
    return matcher


def allows(grammar: AnswerGrammar, text: str, marks: tuple[str, ...] = ()) -> bool:
    """Return whether the grammar allows the text as a whole."""
    matcher = follow(grammar, text, marks)
    return matcher is not None and (matcher.is_done or END in allowed(matcher))


def pieces_of(grammar: AnswerGrammar, text: str) -> list[Piece]:
    parser = OutputParser(grammar.output_format)
    return [*parser.feed(text), *parser.flush()]


# Calls in the syntax of each model.

CALLS = [
    (
        HERMES,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather-2", "arguments": {}}\n</tool_call>',
    ),
    (
        MISTRAL_LIST,
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln"}}, '
        '{"name": "weather-2", "arguments": {}}]',
    ),
    (MISTRAL_ARGS, '[TOOL_CALLS]weather[ARGS]{"city": "Köln"}[TOOL_CALLS]weather-2[ARGS]{}'),
    (
        DEEPSEEK_R1,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        '```json\n{"city": "Köln"}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather-2\n"
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        DEEPSEEK_V3_1,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Köln"}'
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>weather-2<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ),
]
EVERY_MARK = (*IM_MARKS, *MISTRAL_MARKS[6:], *DEEPSEEK_MARKS[:-2])


@pytest.mark.parametrize("marks", [(), EVERY_MARK], ids=["text", "tokens"])
@pytest.mark.parametrize(("syntax", "text"), CALLS, ids=range(len(CALLS)))
def test_two_calls_are_allowed_and_parsed(syntax: ToolSyntax, text: str, marks: tuple[str, ...]):
    calls = [
        ToolCallStarted(0, "weather"),
        ToolArguments(0, '{"city": "Köln"}'),
        ToolCallEnded(0),
        ToolCallStarted(1, "weather-2"),
        ToolArguments(1, "{}"),
        ToolCallEnded(1),
    ]
    for must_call in (False, True):
        grammar = answer(syntax, must_call=must_call)
        assert allows(grammar, text, marks)
        assert pieces_of(grammar, text) == calls
    assert allows(answer(syntax), f"Well.\n{text}", marks)
    assert not allows(answer(syntax, must_call=True), f"Well.\n{text}", marks)
    assert not allows(answer(syntax, must_call=True), "", marks)
    assert not allows(answer(syntax, max_calls=1), text, marks)
    assert not allows(answer(syntax, tools=(WEATHER,)), text, marks)


def test_llama_makes_one_call_at_the_start_only():
    call = '{"name": "weather", "parameters": {"city": "Oslo"}}'
    for must_call in (False, True):
        assert allows(answer(LLAMA, must_call=must_call), call)
        assert follow(answer(LLAMA, must_call=must_call), call + call) is None
    assert pieces_of(answer(LLAMA), call) == [
        ToolCallStarted(0, "weather"),
        ToolArguments(0, '{"city": "Oslo"}'),
        ToolCallEnded(0),
    ]
    assert allows(answer(LLAMA), f"So: {call}")
    assert allows(answer(LLAMA), '{"names": 1}')
    assert not allows(answer(LLAMA), f" {call}"), "the parser would read a call without a grammar"


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "o',
        '<tool_call>\n{"name": "weather-"',
        "<tool_call>{",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "R',
        '<tool_call>\n{"name": "weather", "arguments": {"t',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "m',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 10',
        '<tool_call>\n{"name": "weather", "arguments": [',
        '<tool_call>\n{"name": "weather-2", "arguments": {"',
    ],
)
def test_a_call_that_no_tool_accepts_is_not_allowed(text: str):
    assert follow(answer(), text[:-1]) is not None
    assert follow(answer(), text) is None


@pytest.mark.parametrize("must_call", [False, True])
def test_the_number_of_calls_is_limited(must_call: bool):
    call = "[TOOL_CALLS]weather-2[ARGS]{}"
    for max_calls in (1, 2, MAX_PARALLEL_CALLS):
        grammar = answer(MISTRAL_ARGS, must_call=must_call, max_calls=max_calls)
        assert allows(grammar, call * max_calls)
        assert follow(grammar, call * (max_calls + 1)) is None


def test_a_mark_outside_its_place_is_text_but_not_a_token():
    """Its token is banned there; its characters are text like any other."""
    marks = ("[ARGS]", "[TOOL_CALLS]", "</think>")
    rust = parts(marks)[0]
    free = allowed(matcher_of(answer(MISTRAL_ARGS), marks))
    assert [rust.token_to_id(mark) in free for mark in marks] == [False, True, False]
    plain = answer(None, text=Grammar(GrammarKind.REGEX, "(.|\n)*"), reasoning=THINK, inside=True)
    thought = allowed(matcher_of(plain, marks))
    assert [rust.token_to_id(mark) in thought for mark in marks] == [False, False, True]


# Any tokenization.


def cuts(text: str, seed: int) -> Iterator[list[str]]:
    """Yield ten random tokenizations of the text."""
    rust = parts(())[0]
    words = {word: rust.token_to_id(byte_level(word)) for word in WORDS}
    assert None not in words.values()
    rng = random.Random(seed)
    for _ in range(10):
        pieces, rest = [], text
        while rest:
            fitting = [word for word in WORDS if rest.startswith(word)]
            piece = rng.choice([*fitting, rest[0]])
            pieces.append(piece)
            rest = rest[len(piece) :]
        yield pieces


@pytest.mark.parametrize(
    ("syntax", "text"),
    [*CALLS, (LLAMA, '{"name": "weather", "parameters": {"city": "Oslo"}}')],
    ids=range(len(CALLS) + 1),
)
@pytest.mark.parametrize("before", ["", "abc\n"])
def test_a_mark_can_span_tokens(syntax: ToolSyntax, text: str, before: str):
    rust = parts(())[0]
    for pieces in cuts(before + text, seed=len(text)):
        matcher = matcher_of(answer(syntax))
        for piece in pieces:
            for token_id in _token_ids(rust, piece):
                assert token_id in allowed(matcher), pieces
                matcher.accept(token_id)
        assert matcher.is_done or END in allowed(matcher)


def _token_ids(rust: RustTokenizer, piece: str) -> list[int]:
    word = byte_level(piece)
    if (token_id := rust.token_to_id(word)) is not None:
        return [token_id]
    return rust.encode(piece).ids


def test_a_token_beyond_the_end_of_a_trigger_follows_the_call():
    rust = parts(())[0]
    matcher = follow(answer(), "abc<tool")
    assert matcher is not None
    tokens = {text: rust.token_to_id(byte_level(text)) for text in ("_call>\n", '_call>\n{"', "_")}
    assert set(tokens.values()) <= allowed(matcher)
    matcher = follow(answer(), "abc<tool_call")
    assert matcher is not None
    assert "ink>" in WORDS
    assert rust.token_to_id(">") in allowed(matcher)


# Random output.


def walk(grammar: AnswerGrammar, marks: tuple[str, ...], rng: random.Random) -> tuple[str, bool]:
    """Return random text that the grammar allows, mostly of `WORDS`, and whether it ended."""
    rust = parts(marks)[0]
    likely = {
        token_id
        for text in (*WORDS, *marks)
        if (token_id := rust.token_to_id(text if text in marks else byte_level(text))) is not None
    }
    matcher = matcher_of(grammar, marks)
    token_ids: list[int] = []
    for _ in range(250):
        choices = sorted(allowed(matcher))
        preferred = [token_id for token_id in choices if token_id in likely]
        token_id = rng.choice(preferred if preferred and rng.random() < 0.8 else choices)
        if token_id == END:
            return rust.decode(token_ids, skip_special_tokens=False), True
        matcher.accept(token_id)
        token_ids.append(token_id)
        if matcher.is_done:
            return rust.decode(token_ids, skip_special_tokens=False), True
    return rust.decode(token_ids, skip_special_tokens=False), False


@pytest.mark.parametrize("marks", [(), EVERY_MARK], ids=["text", "tokens"])
@pytest.mark.parametrize("must_call", [False, True])
@pytest.mark.parametrize(
    "reasoning", [None, THINK, MAGISTRAL_THINK], ids=["plain", "think", "magistral"]
)
@pytest.mark.parametrize("syntax", TOOL_SYNTAXES, ids=range(len(TOOL_SYNTAXES)))
def test_every_parsed_call_is_valid(
    syntax: ToolSyntax, reasoning: Any, must_call: bool, marks: tuple[str, ...]
):
    rng = random.Random(7)
    num_calls = 0
    for index in range(6):
        inside = reasoning is not None and index % 2 == 1
        grammar = answer(syntax, must_call=must_call, reasoning=reasoning, inside=inside)
        text, is_ended = walk(grammar, marks, rng)
        pieces = pieces_of(grammar, text)
        num_calls += check_calls(pieces, text)
        if is_ended:
            is_open = bool(pieces) and isinstance(pieces[-1], ToolCallStarted | ToolArguments)
            assert not is_open, text
            has_calls = any(isinstance(piece, ToolCallEnded) for piece in pieces)
            assert has_calls or not must_call, text
            if must_call:
                assert not any(isinstance(piece, AnswerText) for piece in pieces), text
    assert num_calls or not must_call


def check_calls(pieces: list[Piece], text: str) -> int:
    """Assert that all complete calls are valid; return how many there are."""
    names: list[str] = []
    arguments = ""
    num_calls = 0
    for piece in pieces:
        match piece:
            case ToolCallStarted(_, name):
                names.append(name)
                assert name in SCHEMAS, text
                arguments = ""
            case ToolArguments(_, more):
                arguments += more
            case ToolCallEnded():
                jsonschema.validate(json.loads(arguments), SCHEMAS[names[-1]])
                num_calls += 1
            case _:
                assert not names, f"text after a call: {text}"
    return num_calls


# Reasoning.

JSON = Grammar(GrammarKind.JSON_SCHEMA, '{"const": 7}')


@pytest.mark.parametrize("marks", [(), ("<think>", "</think>")], ids=["text", "tokens"])
def test_reasoning_can_precede_an_answer_with_a_grammar(marks: tuple[str, ...]):
    grammar = answer(None, text=JSON, reasoning=THINK)
    assert allows(grammar, "7", marks)
    assert allows(grammar, "<think>Is it 8? {</think>7", marks)
    assert allows(grammar, "<think>\nIs it 8?\n</think>\n\n7", marks)
    assert not allows(grammar, "<think>7", marks)
    assert not allows(grammar, "<think>Is it 8?</think>8", marks)
    assert not allows(grammar, "Is it 8?</think>7", marks)


@pytest.mark.parametrize("marks", [(), ("<think>", "</think>")], ids=["text", "tokens"])
def test_reasoning_opened_by_the_prompt_ends_first(marks: tuple[str, ...]):
    grammar = answer(None, text=JSON, reasoning=THINK, inside=True)
    assert allows(grammar, "Is it 8?</think>7", marks)
    assert allows(grammar, "</think>\n7", marks)
    assert not allows(grammar, "7", marks)


def test_reasoning_can_precede_a_forced_call():
    call = '<tool_call>\n{"name": "weather-2", "arguments": {}}\n</tool_call>'
    grammar = answer(must_call=True, reasoning=THINK)
    assert allows(grammar, call)
    assert allows(grammar, f"<think><tool_call></think>\n\n{call}")
    assert not allows(grammar, f"<think></think>Well.{call}")


def test_text_after_reasoning_is_free():
    grammar = answer(reasoning=THINK)
    assert allows(grammar, "<think>hm</think>\n\nWell. 3 < 4")
    assert allows(grammar, "Well.")
    assert pieces_of(grammar, "<think>hm</think>\n\nWell.") == [
        ReasoningText("hm"),
        AnswerText("Well."),
    ]


# Calls or a text with a grammar.


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        (JSON, "7", "8"),
        (Grammar(GrammarKind.JSON_OBJECT), '{"a": "<tool_call>"}', "[]"),
        (Grammar(GrammarKind.REGEX, "a+"), "aa", "b"),
        (Grammar(GrammarKind.LARK, 'start: "a" start? "b"\n%ignore / /'), "a abb", "aab"),
    ],
    ids=range(4),
)
def test_the_answer_is_calls_or_a_text_of_the_grammar(text: Grammar, good: str, bad: str):
    grammar = answer(replace(HERMES, is_only_at_start=True), text=text)
    call = '<tool_call>\n{"name": "weather-2", "arguments": {}}\n</tool_call>'
    assert allows(grammar, call)
    assert allows(grammar, good)
    assert not allows(grammar, bad)
    assert not allows(grammar, good + call)
    assert pieces_of(grammar, good) == [AnswerText(good)]


# Parameters.


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", {"type": "object", "properties": {}, "additionalProperties": False}),
        ("true", {"type": "object"}),
        ("{}", {"type": "object"}),
        ('{"type": "object"}', {"type": "object"}),
        ('{"type": ["null", "object"]}', {"type": "object"}),
        (
            '{"type": "object", "properties": {"a": {}}}',
            {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        ),
        (
            '{"properties": {"a": {}}, "additionalProperties": {"type": "null"}}',
            {
                "type": "object",
                "properties": {"a": {}},
                "additionalProperties": {"type": "null"},
            },
        ),
        (
            '{"properties": {"a": {}}, "allOf": [{"required": ["b"]}]}',
            {"type": "object", "properties": {"a": {}}, "allOf": [{"required": ["b"]}]},
        ),
    ],
)
def test_arguments_have_the_listed_properties_only(parameters: str, expected: Any):
    assert json.loads(arguments_schema(Tool("f", "", parameters))) == expected


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("{", "they are not valid JSON"),
        ("[" * 100_000, "they are not valid JSON"),
        ("[]", "they must be a JSON schema"),
        ("false", "they must be a JSON schema"),
        ('{"type": "string"}', "they must be of type object"),
        ('{"type": ["string", "null"]}', "they must be of type object"),
    ],
)
def test_parameters_must_be_the_schema_of_an_object(parameters: str, reason: str):
    with pytest.raises(InvalidParameters, match=reason):
        arguments_schema(Tool("f", "", parameters))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ('{"type": "string"}', "they must be of type object"),
        ('{"properties": {"a": {"type": "thing"}}}', "thing"),
        ('{"properties": {"a": {"$ref": "#/nowhere"}}}', "nowhere"),
        ('{"required": ["a"], "properties": {"a": false}}', "[Uu]nsatisfiable"),
    ],
)
def test_a_tool_whose_parameters_cannot_be_compiled_is_named(parameters: str, reason: str):
    with pytest.raises(InvalidRequest, match=f"parameters of 'bad' .*{reason}") as caught:
        matcher_of(answer(tools=(WEATHER, Tool("bad", "", parameters))))
    assert caught.value.param == "tools"


def test_an_error_in_the_text_names_response_format():
    with pytest.raises(InvalidRequest) as caught:
        matcher_of(answer(text=Grammar(GrammarKind.REGEX, "(")))
    assert caught.value.param == "response_format"
