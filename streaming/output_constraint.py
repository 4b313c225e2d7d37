"""What a request wants its text to be: a language, and where one text stands in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from streaming.chat.messages import Tool
from streaming.chat.output_parser import OutputFormat
from streaming.errors import InvalidRequest

MAX_GRAMMAR_CHARS = 65_536


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language that the whole text belongs to.

    Attributes:
        source: a JSON schema as JSON, a regular expression that matches from end to end, or a Lark
            grammar; empty where the kind says all.

    Raises:
        InvalidRequest: the source is too long.
    """

    kind: GrammarKind
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.source) > MAX_GRAMMAR_CHARS:
            raise InvalidRequest(
                param="response_format",
                reason=f"has {len(self.source)} characters; at most {MAX_GRAMMAR_CHARS} are taken",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGrammar:
    """What a chat answer is: reasoning, where its format has it, and then calls or text.

    Attributes:
        output_format: how they are written.
        tools: what may be called.
        must_call: the answer is calls; otherwise, calls may follow a text or take its place.
        max_calls: most calls in the answer.
        text: what an answer without calls is; None is any text.
    """

    output_format: OutputFormat
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    max_calls: int = 1
    text: Grammar | None = None


OutputConstraint = Grammar | AnswerGrammar


class GrammarMatcher(Protocol):
    """Follows one text through its grammar, token by token. Used by one thread at a time."""

    @property
    def is_done(self) -> bool:
        """Whether the text is complete: its end token came, or nothing else could follow."""

    def mask(self) -> bytes:
        """Return the tokens that may come next, one bit each, the lowest bit of a byte first.

        End tokens are among them exactly where the text may end. Tokens beyond the last bit may not
        come. No bit is set once the grammar has failed.
        """

    def accept(self, token_id: int) -> None:
        """Take the token that came."""
