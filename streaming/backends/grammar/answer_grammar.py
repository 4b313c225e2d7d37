"""The grammar of a chat answer, in Lark as llguidance reads it.

An answer is reasoning, where the model reasons, and then calls or text. It is read as an
`OutputParser` reads it: where text and a mark could be taken for each other, the text gives way, so
what the parser takes for a call is one. Marks that are tokens of their own are named by id.
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
"""What `str.lstrip` takes away: \\s, and separators that Unicode does not count as blanks."""
_GAP = r"/[ \t\r\n]{1,8}/"
"""Between reasoning and an answer of a certain form."""
_OPEN_ROOT = frozenset(
    {
        *("additionalProperties", "patternProperties", "unevaluatedProperties"),
        *("allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas"),
    }
)
"""What may say something of properties that `properties` does not list."""


class UnfitParameters(ValueError):
    """A tool's parameters are no schema of an object; the text says why."""


def arguments_schema(tool: Tool) -> str:
    """Return the JSON schema that a tool's arguments are held to: an object, in any case.

    Where the schema lists properties and says nothing of others, there are no others: a model that
    may invent some does.

    Raises:
        UnfitParameters: no object can be valid.
    """
    try:
        schema = json.loads(tool.parameters or '{"properties": {}}')
    except (ValueError, RecursionError) as error:
        raise UnfitParameters("they are no JSON") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise UnfitParameters("they must be a JSON schema")
    types = schema.get("type", "object")
    if "object" not in (types if isinstance(types, list) else [types]):
        raise UnfitParameters("they must be of the type object")
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
    """Return the grammar.

    Args:
        answer: what it is of.
        token_ids: texts that are tokens of their own, and never pieces of text.
        arguments: a Lark expression for each tool's arguments.
        text: a Lark expression for an answer without calls; None is any text.
    """
    writer = _Writer(token_ids)
    tools = answer.output_format.tools
    reasoning = answer.output_format.reasoning
    is_free = text is None and not answer.must_call
    if tools is not None:
        _write_calls(writer, tools, answer, list(arguments))
    if is_free:
        assert tools is not None, "what is free needs no grammar"
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
    writer: _Writer, syntax: ToolSyntax, answer: AnswerGrammar, arguments: list[str]
) -> None:
    """Write `calls`, and `calls_after_trigger` for those whose trigger has been written."""
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
    writer: _Writer, syntax: ToolSyntax, reasoning: ReasoningSyntax | None
) -> None:
    """Write `free`: text that calls may follow, or take the place of."""
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


class _Writer:
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
        """Write a rule for a text, or none, up to the first `end`, which it takes with it."""
        if self._tokens.search(end):
            self.rule(name, f"{terminal}? {self.sequence(end)}")
        else:
            self.rule(f"{name}[lazy]", f"UNTIL_{terminal}")
            self.terminal(f"UNTIL_{terminal}", f"{terminal}? {_literal(end)}")

    def sequence(self, text: str) -> str:
        """Return what a text is made of: tokens of their own, and text between them."""
        return " ".join(
            f"<[{self._token_ids[piece]}]>" if index % 2 else _literal(piece)
            for index, piece in enumerate(self._tokens.split(text))
            if piece
        )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
