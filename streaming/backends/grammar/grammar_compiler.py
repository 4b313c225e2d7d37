"""Grammars as masks over the tokens of one tokenizer, through llguidance.

Each request has its grammar compiled anew. llguidance's copies of a compiled grammar share one
lexer, whose states have a limit: a cache would let the text of one request end those of others.
The choices of one request share one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, assert_never

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from streaming.backends.grammar.answer_grammar import arguments_schema, write_answer_grammar
from streaming.chat.messages import Tool
from streaming.errors import InvalidRequest
from streaming.output_constraint import (
    AnswerGrammar,
    Grammar,
    GrammarKind,
    GrammarMatcher,
    OutputConstraint,
)

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

logger = logging.getLogger(__name__)

_MAX_REASON_CHARS = 300
_MAX_LEXER_STATES = 50_000
"""1 to 2 kB each, of one request. Ordinary schemas make hundreds."""
_JSON_OPTIONS: JsonCompileOptions = {
    # A model that has nothing to say may write blanks for ever.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}",
    # What follows is the default, said here so that no schema's "x-guidance" can loosen it.
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "coerce_one_of": False,
    "lenient": False,
}
_ANY_OBJECT = '{"type": "object"}'
_LARK_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
"""Where only one text can follow, llguidance would force the tokens that the tokenizer makes of it:
for a text that is written like a special token, the special token itself."""
_LARK_LITERAL_OR_COMMENT = re.compile(
    r'"(?:\\.|[^"\\])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\])+/', re.DOTALL
)
_LARK_SPECIAL_TOKEN = re.compile(r"<[^>\s]*>?")
_LISTING = re.compile(r"^ *(\d+ \|.*|\^+)$|<non-verbose/>", re.MULTILINE)
_JSON_POSITION = "at 1(8): failed to compile JSON schema: "
_COMPLETE = frozenset({"NoExtension", "NoExtensionBias", "EndOfSentence"})
"""Of llguidance's reasons to stop, those that are no failure."""


class LlguidanceCompiler:
    """Compiles grammars for one tokenizer. Thread-safe.

    Making one takes half a second and holds the interpreter lock, so it is made while the model is
    loaded, not when a request first needs it. `compile` does not hold the lock.

    Args:
        rust: a fast tokenizer's core.
        eos_token_ids: tokens that end a text.
        vocab_size: ids that the model knows are below it.

    Raises:
        ValueError: llguidance cannot read the tokenizer.
    """

    def __init__(
        self, rust: RustTokenizer, *, eos_token_ids: Iterable[int], vocab_size: int
    ) -> None:
        num_tokens = rust.get_vocab_size(with_added_tokens=True)
        eos = sorted(token_id for token_id in eos_token_ids if token_id < num_tokens)
        self._tokenizer = LLTokenizer(rust.to_str(), eos_token=eos or None)
        size = self._tokenizer.vocab_size
        is_text = np.ones(-(-size // 32) * 32, dtype=bool)
        is_text[min(size, vocab_size) :] = False
        is_text[[i for i in range(size) if self._tokenizer.is_special_token(i)]] = False
        is_text[self._tokenizer.eos_tokens] = False
        self._text_bits = np.packbits(is_text, bitorder="little")
        self._end_bits = self._pack(i for i in self._tokenizer.eos_tokens if i < vocab_size)
        self._special_ids = {
            token.content: token_id
            for token_id, token in rust.get_added_tokens_decoder().items()
            if token_id < min(size, vocab_size) and self._tokenizer.is_special_token(token_id)
        }
        # Without what the user wrote: errors of a running text go to the log.
        self._limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)

    def compile(self, language: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        """Return `count` matchers, each at the beginning; run it on a worker thread.

        Raises:
            InvalidRequest: the grammar cannot be compiled, and why.
        """
        match language:
            case Grammar():
                compiled, text_bits = self._compile_text(language), self._text_bits
            case AnswerGrammar():
                marks = self._marks(language)
                compiled = self._compile_answer(language, marks)
                text_bits = self._text_bits | self._pack(marks.values())
            case _:
                assert_never(language)
        matchers: list[GrammarMatcher] = [
            LlguidanceMatcher(compiled.deep_copy(), text_bits, self._end_bits) for _ in range(count)
        ]
        if not any(matchers[0].mask()):
            raise _refused(language, "no token of this model can begin such a text")
        return matchers

    def _compile_text(self, grammar: Grammar) -> LLMatcher:
        compiled = self._compile_source(_to_lark(grammar))
        if reason := _failure(compiled):
            raise _refused(grammar, reason)
        return compiled

    def _compile_answer(self, answer: AnswerGrammar, marks: dict[str, int]) -> LLMatcher:
        text = None if answer.text is None else _to_lark(answer.text)
        main = write_answer_grammar(
            answer,
            token_ids=marks,
            arguments=[_arguments(tool) for tool in answer.tools],
            text=None if text is None else "@text",
        )
        compiled = self._compile_source(main, text=text)
        if reason := _failure(compiled):
            self._blame_part(answer)
            raise _refused(answer, reason)
        return compiled

    def _blame_part(self, answer: AnswerGrammar) -> None:
        """Refuse the tool, or the text, that cannot be compiled by itself."""
        if answer.text is not None:
            self._compile_text(answer.text)
        for tool in answer.tools:
            alone = self._compile_source(f"start: {_arguments(tool)}")
            if reason := _failure(alone):
                raise _refused_tool(tool, reason)

    def _compile_source(self, lark: str, *, text: str | None = None) -> LLMatcher:
        """Compile a grammar that may refer to another one as `@text`."""
        grammars = [{"lark_grammar": lark + _LARK_OPTIONS}]
        if text is not None:
            grammars.append({"name": "text", "lark_grammar": text + _LARK_OPTIONS})
        source = json.dumps({"grammars": grammars})
        compiled = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if not compiled.is_error():
            # The first mask costs most, and may be more than the limits allow.
            compiled.compute_bitmask()
        return compiled

    def _marks(self, answer: AnswerGrammar) -> dict[str, int]:
        """Return the marks of an answer that are tokens of their own, and their ids."""
        texts = "\n".join(answer.output_format.marks)
        return {text: token_id for text, token_id in self._special_ids.items() if text in texts}

    def _pack(self, token_ids: Iterable[int]) -> NDArray[np.uint8]:
        is_in = np.zeros(len(self._text_bits) * 8, dtype=bool)
        is_in[list(token_ids)] = True
        return np.packbits(is_in, bitorder="little")


class LlguidanceMatcher:
    """One text's place in its grammar.

    Args:
        matcher: at the beginning; owned from here on.
        text_bits: which tokens are text, packed as masks are.
        end_bits: which tokens end a text.
    """

    def __init__(
        self, matcher: LLMatcher, text_bits: NDArray[np.uint8], end_bits: NDArray[np.uint8]
    ) -> None:
        self._matcher = matcher
        self._text_bits = text_bits
        self._end_bits = end_bits

    @property
    def is_done(self) -> bool:
        return self._matcher.is_stopped() and self._matcher.stop_reason() in _COMPLETE

    def mask(self) -> bytes:
        # llguidance adds a word to vocabularies that fill theirs.
        num_bytes = len(self._text_bits)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8, count=num_bytes)
        if self._matcher.is_error():
            # llguidance would now let the text end, wherever it stands.
            logger.warning("a grammar failed: %s", _shorten(self._matcher.get_error()))
            return bytes(num_bytes)
        allowed = self._text_bits
        if self._matcher.is_accepting():
            allowed = allowed | self._end_bits
        return (bits & allowed).tobytes()

    def accept(self, token_id: int) -> None:
        # One that it does not take fails the grammar, and so the next mask.
        self._matcher.consume_token(token_id)


def _failure(compiled: LLMatcher) -> str | None:
    """Return why a grammar cannot be used; one that allows nothing but the empty text can."""
    if not compiled.is_error() or compiled.get_error().startswith("NoExtension"):
        return None
    return compiled.get_error()


def _to_lark(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_OBJECT:
            lark = f"start: {_json_expression(_ANY_OBJECT)}"
        case GrammarKind.JSON_SCHEMA:
            try:
                lark = f"start: {_json_expression(grammar.source)}"
            except ValueError as error:
                raise _refused(grammar, str(error)) from error
        case GrammarKind.REGEX:
            [part] = json.loads(LLMatcher.grammar_from_regex(grammar.source))["grammars"]
            lark = part["lark_grammar"]
        case GrammarKind.LARK:
            outside = _LARK_LITERAL_OR_COMMENT.sub(" ", grammar.source)
            if found := _LARK_SPECIAL_TOKEN.search(outside):
                raise _refused(grammar, f"special tokens are not text: {found[0]}")
            lark = grammar.source
    if not lark.strip():
        raise _refused(grammar, "it is empty")
    return lark


def _json_expression(schema: str) -> str:
    """Return a schema as an expression in Lark.

    Raises:
        ValueError: it is no JSON, and where.
    """
    whole = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)
    [part] = json.loads(whole)["grammars"]
    return f"%json {json.dumps(part['json_schema'], ensure_ascii=False)}"


def _arguments(tool: Tool) -> str:
    try:
        return _json_expression(arguments_schema(tool))
    except ValueError as error:
        raise _refused_tool(tool, str(error)) from error


def _refused(language: OutputConstraint, reason: str) -> InvalidRequest:
    if isinstance(language, AnswerGrammar):
        param, kind = ("tools", "calls") if language.tools else ("response_format", "answer")
    else:
        param, kind = "response_format", language.kind.value
    return InvalidRequest(param=param, reason=f"the {kind} cannot be compiled: {_shorten(reason)}")


def _refused_tool(tool: Tool, reason: str) -> InvalidRequest:
    return InvalidRequest(
        param="tools",
        reason=f"the parameters of {tool.name!r} cannot be compiled: {_shorten(reason)}",
    )


def _shorten(reason: str) -> str:
    """Return llguidance's reason in one line, without the listing of what was to be compiled."""
    text = " ".join(_LISTING.sub("", reason.removeprefix(_JSON_POSITION)).split())
    return text if len(text) <= _MAX_REASON_CHARS else f"{text[:_MAX_REASON_CHARS]}..."
