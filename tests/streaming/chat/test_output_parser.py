"""Reasoning, answer and tool calls are parsed the same, however the text is split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.chat.output_parser import (
    PLAIN,
    AnswerText,
    OutputFormat,
    OutputParser,
    Piece,
    ReasoningSyntax,
    ReasoningText,
    ToolArguments,
    ToolCallEnded,
    ToolCallStarted,
    ToolSyntax,
    _append,
)
from tests.support import property_test

HERMES = ToolSyntax(
    trigger="<tool_call>",
    call_begin='<tool_call>\n{"name": "',
    call_middle='", "arguments": ',
    call_end="}\n</tool_call>",
    separator="\n",
)
MISTRAL = ToolSyntax(
    trigger="[TOOL_CALLS]",
    section_begin="[TOOL_CALLS] [",
    call_begin='{"name": "',
    call_middle='", "arguments": ',
    call_end="}",
    separator=", ",
    section_end="]",
)
BARE = ToolSyntax(
    trigger='{"name": "',
    call_begin='{"name": "',
    call_middle='", "parameters": ',
    call_end="}",
    separator="; ",
    is_only_at_start=True,
)
THINK = ReasoningSyntax("<think>", "</think>")

CASES: list[tuple[str, OutputFormat, str, list[Piece]]] = [
    (
        "plain",
        PLAIN,
        " <think>a</think> <tool_call>",
        [AnswerText(" <think>a</think> <tool_call>")],
    ),
    (
        "reasoning",
        OutputFormat(reasoning=THINK),
        "\n<think>\nhm <b> </thin\n</think>\n\nYes.",
        [ReasoningText("hm <b> </thin"), AnswerText("Yes.")],
    ),
    (
        "reasoning that begins in the prompt",
        OutputFormat(reasoning=THINK, starts_in_reasoning=True),
        "\nhm</think>Yes.\n",
        [ReasoningText("hm"), AnswerText("Yes.\n")],
    ),
    (
        "reasoning that never ends",
        OutputFormat(reasoning=THINK),
        "<think>hm",
        [ReasoningText("hm")],
    ),
    ("no reasoning", OutputFormat(reasoning=THINK), " <thing>", [AnswerText(" <thing>")]),
    ("empty reasoning", OutputFormat(reasoning=THINK), "<think>\n\n</think>\n", []),
    (
        "a call after text",
        OutputFormat(HERMES),
        'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": "}\\"{"}}\n</tool_call>',
        [
            AnswerText("I look."),
            ToolCallStarted(0, "f"),
            ToolArguments(0, '{"a": "}\\"{"}'),
            ToolCallEnded(0),
        ],
    ),
    (
        "two calls after reasoning",
        OutputFormat(HERMES, THINK),
        '<think>f, g</think>\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {"b": {}}}\n</tool_call>',
        [
            ReasoningText("f, g"),
            ToolCallStarted(0, "f"),
            ToolArguments(0, "{}"),
            ToolCallEnded(0),
            ToolCallStarted(1, "g"),
            ToolArguments(1, '{"b": {}}'),
            ToolCallEnded(1),
        ],
    ),
    (
        "a section of calls",
        OutputFormat(MISTRAL),
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
        [
            ToolCallStarted(0, "f"),
            ToolArguments(0, "{}"),
            ToolCallEnded(0),
            ToolCallStarted(1, "g"),
            ToolArguments(1, "{}"),
            ToolCallEnded(1),
        ],
    ),
    (
        "a bare call",
        OutputFormat(BARE),
        '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
        [
            ToolCallStarted(0, "f"),
            ToolArguments(0, '{"a": 1}'),
            ToolCallEnded(0),
            ToolCallStarted(1, "g"),
            ToolArguments(1, "{}"),
            ToolCallEnded(1),
        ],
    ),
    (
        "call syntax after text",
        OutputFormat(BARE),
        'So: {"name": "f", "parameters": {}}',
        [AnswerText('So: {"name": "f", "parameters": {}}')],
    ),
    (
        "other JSON",
        OutputFormat(BARE),
        ' {"name": 1}',
        [AnswerText(' {"name": 1}')],
    ),
    (
        "an incomplete call",
        OutputFormat(HERMES),
        '<tool_call>\n{"name": "f", "arguments": {"a": ',
        [ToolCallStarted(0, "f"), ToolArguments(0, '{"a": ')],
    ),
    ("an incomplete name", OutputFormat(HERMES), '<tool_call>\n{"name": "f', []),
    ("a partial delimiter", OutputFormat(HERMES), "a <tool_ca", [AnswerText("a <tool_ca")]),
    ("whitespace at the end", OutputFormat(HERMES), "a \n", [AnswerText("a \n")]),
]


def parse(output_format: OutputFormat, parts: list[str]) -> tuple[list[Piece], bool]:
    parser = OutputParser(output_format)
    pieces: list[Piece] = []
    for piece in itertools.chain(*map(parser.feed, parts), parser.flush()):
        _append(pieces, piece)
    return pieces, parser.ends_with_calls


@pytest.mark.parametrize(
    ("output_format", "text", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_pieces_do_not_depend_on_how_the_text_is_split(
    output_format: OutputFormat, text: str, expected: list[Piece]
):
    ends_with_calls = bool(expected) and isinstance(expected[-1], ToolCallEnded)
    assert parse(output_format, [text]) == (expected, ends_with_calls)
    assert parse(output_format, list(text)) == (expected, ends_with_calls)
    for cut in range(len(text)):
        assert parse(output_format, [text[:cut], text[cut:]]) == (expected, ends_with_calls)


@property_test
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "<", " ", "\n", "a"])),
    st.data(),
)
def test_random_text_parses_the_same_however_it_is_split(parts: list[str], data: st.DataObject):
    text = "".join(parts)
    output_format = OutputFormat(HERMES, THINK)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert parse(output_format, pieces) == parse(output_format, [text])


@pytest.mark.parametrize(
    ("text", "ends_with_calls"),
    [
        ('{"name": "f", "arguments": {}', True),
        ('{"name": "f", "arguments": {}}\n</tool', True),
        ('{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "g', True),
        (
            '{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n'
            '{"name": "g", "arguments": {',
            False,
        ),
        ('{"name": "f", "arguments": {"a": {}', False),
        ('{"name": "f"', False),
    ],
)
def test_a_text_ends_with_calls_if_all_that_started_are_complete(text: str, ends_with_calls: bool):
    assert parse(OutputFormat(HERMES), ["<tool_call>\n", text])[1] == ends_with_calls


def test_certain_text_is_returned_at_once():
    parser = OutputParser(OutputFormat(HERMES))
    assert parser.feed("Hello <") == [AnswerText("Hello")]
    assert parser.feed("b>") == [AnswerText(" <b>")]
    assert parser.feed('<tool_call>\n{"name": "f", "arguments": {"a') == [
        ToolCallStarted(0, "f"),
        ToolArguments(0, '{"a'),
    ]


@pytest.mark.parametrize(
    ("output_format", "texts", "expected"),
    [
        (OutputFormat(reasoning=THINK), ["<thi", "nk>", "hm", "</think", ">", "Yes"], "-rrr--"),
        (OutputFormat(reasoning=THINK, starts_in_reasoning=True), ["", "hm", "</think>"], "rr-"),
        (OutputFormat(reasoning=THINK), ["No <think>"], "-"),
        (PLAIN, ["<think>"], "-"),
    ],
)
def test_is_in_reasoning(output_format: OutputFormat, texts: list[str], expected: str):
    parser = OutputParser(output_format)
    seen = ""
    for text in texts:
        parser.feed(text)
        seen += "r" if parser.is_in_reasoning else "-"
    assert seen == expected
