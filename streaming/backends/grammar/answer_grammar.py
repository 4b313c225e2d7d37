"""Writes the grammar of a chat answer, in llguidance's dialect of Lark.

An answer is optional reasoning, followed by tool calls or text. The grammar follows the rules of
`OutputParser`: text cannot contain a mark where the parser would read a call, so every call that
the parser reads is valid. Marks that are single tokens are written as token ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from streaming.chat.messages import Tool
from streaming.chat.output_parser import ReasoningSyntax, ToolSyntax
from streaming.output_constraint import AnswerGrammar

_ANY = r"/(.|\n)*/"
_SOME = r"/(.|\n)+/"
_BLANKS = r"/[\s\x1c-\x1f]*/"
"""Whitespace as `str.lstrip` removes it: \\s and the separators U+001C to U+001F."""
_GAP = r"/[ \t\r\n]{1,8}/"
"""Whitespace between reasoning and an answer with a grammar of its own."""
_OPEN_ROOT = frozenset(
    {
        *("additionalProperties", "patternProperties", "unevaluatedProperties"),
        *("allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas"),
    }
)
"""Keywords of a schema that can allow properties beyond those in `properties`."""


class InvalidParameters(ValueError):
    """A tool's parameters are not the schema of an object; the text is the reason."""


def arguments_schema(tool: Tool) -> str:
    """Return the JSON schema for a tool's arguments, always the schema of an object.

    If the tool's schema lists properties and has no keyword that allows others, others are
    forbidden: models invent properties if they can.

    Raises:
        InvalidParameters: the tool's schema is invalid or not that of an object.
    """
    try:
        schema = json.loads(tool.parameters or '{"properties": {}}')
    except (ValueError, RecursionError) as error:
        raise InvalidParameters("they are not valid JSON") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidParameters("they must be a JSON schema")
    types = schema.get("type", "object")
    if "object" not in (types if isinstance(types, list) else [types]):
        raise InvalidParameters("they must be of type object")
    schema["type"] = "object"
    if "properties" in schema and not _OPEN_ROOT & schema.keys():
        schema["additionalProperties"] = False
    return json.dumps(schema, ensure_ascii=False)


def write_answer_grammar(
    answer: AnswerGrammar,
    *,
    token_ids: Mapping[str, int],
    arguments: Iterable[str],
    text: str | None,
) -> str:
    """Return the grammar of an answer, in Lark.

    Args:
        answer: the answer's format, its tools and its rules.
        token_ids: ids of the marks that are single tokens. Plain text cannot contain them.
        arguments: a Lark expression for the arguments of each tool, in the order of the tools.
        text: a Lark expression for an answer without calls. None allows any text.
    """
    writer = _GrammarWriter(token_ids)
    tools = answer.output_format.tools
    reasoning = answer.output_format.reasoning
    is_free = text is None and not answer.must_call
    if tools is not None:
        _write_calls(writer, tools, answer, list(arguments))
    if is_free:
        assert tools is not None, "free text without tools needs no grammar"
        _write_free_text(writer, tools, reasoning)
        body = "free"
    else:
        forms = ["calls"] if tools is not None else []
        body = " | ".join(forms if answer.must_call or text is None else [*forms, text])
    writer.rule("answer", body)
    if reasoning is None:
        writer.rule("start", "answer")
        return writer.grammar
    writer.terminal("THOUGHT", f"{_SOME} & ~({_ANY} {_literal(reasoning.end)} {_ANY})")
    writer.until("thoughts", "THOUGHT", reasoning.end)
    writer.terminal("GAP", _GAP)
    rest = "thoughts answer" if is_free else "thoughts GAP? answer"
    if answer.output_format.starts_in_reasoning:
        writer.rule("start", rest)
    else:
        writer.rule("start", f"{writer.sequence(reasoning.begin)} {rest} | answer")
    return writer.grammar


def _write_calls(
    writer: _GrammarWriter, syntax: ToolSyntax, answer: AnswerGrammar, arguments: list[str]
) -> None:
    """Write the rules `calls`, and `calls_after_trigger` for calls whose trigger came before."""
    opening = syntax.section_begin + syntax.call_begin
    after_trigger = opening.removeprefix(syntax.trigger)
    ends = {
        "first": opening,
        "first_after_trigger": after_trigger,
        "next": syntax.separator + syntax.call_begin,
    }
    for index, expression in enumerate(arguments):
        writer.rule(f"arguments_{index}", expression)
    for name, begin in ends.items():
        forms = [
            f"{writer.sequence(begin + tool.name + syntax.call_middle)} arguments_{index}"
            for index, tool in enumerate(answer.tools)
        ]
        writer.rule(name, f"({' | '.join(forms)}) {writer.sequence(syntax.call_end)}")
    more = f"next{{0,{answer.max_calls - 1}}}" if answer.max_calls > 1 else ""
    rest = f"{more} {writer.sequence(syntax.section_end)}"
    writer.rule("calls", f"first {rest}")
    writer.rule("calls_after_trigger", f"first_after_trigger {rest}")


def _write_free_text(
    writer: _GrammarWriter, syntax: ToolSyntax, reasoning: ReasoningSyntax | None
) -> None:
    """Write the rule `free`: text, calls, or text followed by calls."""
    trigger = _literal(syntax.trigger)
    exclusions = []
    if reasoning is not None:
        exclusions.append(f"({_BLANKS} {_literal(reasoning.begin)} {_ANY})")
    if syntax.is_only_at_start:
        exclusions.append(f"({_BLANKS} {trigger} {_ANY})")
    else:
        exclusions.append(f"({_ANY} {trigger} {_ANY})")
    writer.terminal("TEXT", " & ".join([_SOME, *(f"~{text}" for text in exclusions)]))
    if syntax.is_only_at_start:
        writer.rule("free", "calls | TEXT?")
    else:
        writer.until("triggered", "TEXT", syntax.trigger)
        writer.rule("free", "triggered calls_after_trigger | TEXT?")


class _GrammarWriter:
    """Collects the lines of a grammar.

    Args:
        token_ids: ids of the marks that are single tokens.
    """

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        self._token_ids = token_ids
        longest_first = sorted(token_ids, key=len, reverse=True)
        self._tokens = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._lines: list[str] = []

    @property
    def grammar(self) -> str:
        return "\n".join(self._lines)

    def rule(self, name: str, body: str) -> None:
        self._lines.append(f"{name}: {body}")

    def terminal(self, name: str, body: str) -> None:
        self._lines.append(f"{name}: {body}")

    def until(self, name: str, terminal: str, end: str) -> None:
        """Write a rule for an optional text up to and including the first `end`."""
        if self._tokens.search(end):
            self.rule(name, f"{terminal}? {self.sequence(end)}")
        else:
            self.rule(f"{name}[lazy]", f"UNTIL_{terminal}")
            self.terminal(f"UNTIL_{terminal}", f"{terminal}? {_literal(end)}")

    def sequence(self, text: str) -> str:
        """Return a Lark sequence for a text: marks as token ids, the rest as literals."""
        return " ".join(
            f"<[{self._token_ids[piece]}]>" if index % 2 else _literal(piece)
            for index, piece in enumerate(self._tokens.split(text))
            if piece
        )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
