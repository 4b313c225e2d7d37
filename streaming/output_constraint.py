"""Constraints on the output of a request (structured output), and the state of one text in them.

Admission builds a constraint from a request; a backend compiles it to `GrammarMatcher`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from streaming.chat.messages import Tool
from streaming.chat.output_parser import OutputFormat
from streaming.errors import InvalidRequest

MAX_GRAMMAR_CHARS = 65_536


class GrammarKind(StrEnum):
    """Notation of a grammar's source."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar that the whole text must match.

    Attributes:
        kind: notation of the source.
        source: a JSON schema as JSON, a regular expression for the whole text, or a Lark grammar;
            empty for `JSON_OBJECT`, which allows any JSON object.

    Raises:
        InvalidRequest: the source has more than `MAX_GRAMMAR_CHARS` characters.
    """

    kind: GrammarKind
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.source) > MAX_GRAMMAR_CHARS:
            raise InvalidRequest(
                param="response_format",
                reason=f"must have at most {MAX_GRAMMAR_CHARS} characters (got {len(self.source)})",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGrammar:
    """A constraint on a chat answer: reasoning, if its format has any, then tool calls or text.

    Attributes:
        output_format: syntax of tool calls and reasoning.
        tools: tools that may be called.
        must_call: the answer consists of calls; otherwise calls may follow or replace the text.
        max_calls: most calls in the answer.
        text: grammar of an answer without calls; None allows any text.
    """

    output_format: OutputFormat
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    max_calls: int = 1
    text: Grammar | None = None


OutputConstraint = Grammar | AnswerGrammar


class GrammarMatcher(Protocol):
    """State of one text in its grammar, advanced token by token. Used by one thread at a time."""

    @property
    def is_done(self) -> bool:
        """Whether the text is complete: it has its end token, or no token could follow."""

    def mask(self) -> bytes:
        """Return the allowed next tokens: one bit per token id, lowest bit of each byte first.

        End tokens are allowed exactly where the text may end. Token ids beyond the last bit are not
        allowed. After the grammar has failed, no bit is set.
        """

    def accept(self, token_id: int) -> None:
        """Advance the state by the token that was sampled."""
