"""Compiles grammars to token masks for one tokenizer, with llguidance.

The grammar of each request is compiled anew. Copies of a compiled grammar share one lexer, and the
number of its states is limited: with a cache, one request could use up the states and fail the
others. Only the choices of one request share a lexer.
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
"""Limit for one request; a state takes 1 to 2 kB. Ordinary schemas need hundreds."""
_JSON_OPTIONS: JsonCompileOptions = {
    # Limited, because a model can get stuck in writing whitespace.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}",
    # These are the defaults, set so that "x-guidance" in a schema cannot loosen them.
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "coerce_one_of": False,
    "lenient": False,
}
_ANY_OBJECT = '{"type": "object"}'
_LARK_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
"""Turns forced tokens off. Where only one text can follow, llguidance would force its tokens, and a
text spelled like a special token would become that token."""
_LARK_LITERAL_OR_COMMENT = re.compile(
    r'"(?:\\.|[^"\\])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\])+/', re.DOTALL
)
_LARK_SPECIAL_TOKEN = re.compile(r"<[^>\s]*>?")
_LISTING = re.compile(r"^ *(\d+ \|.*|\^+)$|<non-verbose/>", re.MULTILINE)
_JSON_POSITION = "at 1(8): failed to compile JSON schema: "
_COMPLETE = frozenset({"NoExtension", "NoExtensionBias", "EndOfSentence"})
"""The stop reasons of llguidance that mean success."""


class LlguidanceCompiler:
    """Compiles grammars for one tokenizer. Thread-safe.

    The constructor takes half a second and holds the interpreter lock, so it is called while the
    model is loaded. `compile` releases the lock.

    Args:
        rust: the Rust core of a fast tokenizer.
        eos_token_ids: tokens that end a text.
        vocab_size: number of ids that the model supports; larger ids are never allowed.

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
        # Errors of a running text are logged, so they must not quote the user.
        self._limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        """Return `count` independent matchers, each at the start of a text.

        Compiling can take a second: call it on a worker thread.

        Raises:
            InvalidRequest: the constraint cannot be compiled. The message has the reason.
        """
        match constraint:
            case Grammar():
                compiled, text_bits = self._compile_text(constraint), self._text_bits
            case AnswerGrammar():
                marks = self._marks(constraint)
                compiled = self._compile_answer(constraint, marks)
                text_bits = self._text_bits | self._pack(marks.values())
            case _:
                assert_never(constraint)
        matchers: list[GrammarMatcher] = [
            LlguidanceMatcher(compiled.deep_copy(), text_bits, self._end_bits) for _ in range(count)
        ]
        if not any(matchers[0].mask()):
            raise _compile_error(constraint, "no token of this model can start a matching text")
        return matchers

    def _compile_text(self, grammar: Grammar) -> LLMatcher:
        compiled = self._compile_source(_to_lark(grammar))
        if reason := _failure(compiled):
            raise _compile_error(grammar, reason)
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
            self._check_parts(answer)
            raise _compile_error(answer, reason)
        return compiled

    def _check_parts(self, answer: AnswerGrammar) -> None:
        """Raise an error for the first part, text or tool, that fails to compile by itself."""
        if answer.text is not None:
            self._compile_text(answer.text)
        for tool in answer.tools:
            alone = self._compile_source(f"start: {_arguments(tool)}")
            if reason := _failure(alone):
                raise _tool_error(tool, reason)

    def _compile_source(self, lark: str, *, text: str | None = None) -> LLMatcher:
        """Compile a Lark grammar that may refer to the grammar `text` as `@text`."""
        grammars = [{"lark_grammar": lark + _LARK_OPTIONS}]
        if text is not None:
            grammars.append({"name": "text", "lark_grammar": text + _LARK_OPTIONS})
        source = json.dumps({"grammars": grammars})
        compiled = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if not compiled.is_error():
            # Compute the first mask here: it is the most expensive and can exceed the limits.
            compiled.compute_bitmask()
        return compiled

    def _marks(self, answer: AnswerGrammar) -> dict[str, int]:
        """Return the ids of an answer's marks that are single tokens."""
        texts = "\n".join(answer.output_format.delimiters)
        return {text: token_id for text, token_id in self._special_ids.items() if text in texts}

    def _pack(self, token_ids: Iterable[int]) -> NDArray[np.uint8]:
        """Return a mask with the bits of the given ids, lowest bit first."""
        is_in = np.zeros(len(self._text_bits) * 8, dtype=bool)
        is_in[list(token_ids)] = True
        return np.packbits(is_in, bitorder="little")


class LlguidanceMatcher:
    """Follows one text through its grammar. Implements `GrammarMatcher`.

    Args:
        matcher: at the start of the text; owned from here on.
        text_bits: mask of the tokens that can be part of a text, one bit per token, lowest first.
        end_bits: mask of the tokens that end a text.
    """

    def __init__(
        self, matcher: LLMatcher, text_bits: NDArray[np.uint8], end_bits: NDArray[np.uint8]
    ) -> None:
        self._matcher = matcher
        self._text_bits = text_bits
        self._end_bits = end_bits

    @property
    def is_done(self) -> bool:
        """Whether the text is complete: its end token came, or nothing can follow."""
        return self._matcher.is_stopped() and self._matcher.stop_reason() in _COMPLETE

    def mask(self) -> bytes:
        """Return the allowed next tokens, one bit each, lowest bit first; none after a failure."""
        # llguidance's mask has an extra word if the vocabulary fills its last one.
        num_bytes = len(self._text_bits)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8, count=num_bytes)
        if self._matcher.is_error():
            # llguidance would now allow the end tokens, even inside an incomplete text.
            logger.warning("a grammar matcher failed: %s", _shorten(self._matcher.get_error()))
            return bytes(num_bytes)
        allowed = self._text_bits
        if self._matcher.is_accepting():
            allowed = allowed | self._end_bits
        return (bits & allowed).tobytes()

    def accept(self, token_id: int) -> None:
        """Advance by one token. A token outside the mask fails the matcher."""
        self._matcher.consume_token(token_id)


def _failure(compiled: LLMatcher) -> str | None:
    """Return the error of a compiled grammar. Allowing only the empty text is not an error."""
    if not compiled.is_error() or compiled.get_error().startswith("NoExtension"):
        return None
    return compiled.get_error()


def _to_lark(grammar: Grammar) -> str:
    """Return a grammar of any kind as Lark.

    Raises:
        InvalidRequest: the source is invalid.
    """
    match grammar.kind:
        case GrammarKind.JSON_OBJECT:
            lark = f"start: {_json_expression(_ANY_OBJECT)}"
        case GrammarKind.JSON_SCHEMA:
            try:
                lark = f"start: {_json_expression(grammar.source)}"
            except ValueError as error:
                raise _compile_error(grammar, str(error)) from error
        case GrammarKind.REGEX:
            [part] = json.loads(LLMatcher.grammar_from_regex(grammar.source))["grammars"]
            lark = part["lark_grammar"]
        case GrammarKind.LARK:
            outside = _LARK_LITERAL_OR_COMMENT.sub(" ", grammar.source)
            if found := _LARK_SPECIAL_TOKEN.search(outside):
                raise _compile_error(grammar, f"special tokens are not allowed: {found[0]}")
            lark = grammar.source
    if not lark.strip():
        raise _compile_error(grammar, "it is empty")
    return lark


def _json_expression(schema: str) -> str:
    """Return a JSON schema as a Lark expression.

    Raises:
        ValueError: the schema is not JSON. The message has the position.
    """
    whole = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)
    [part] = json.loads(whole)["grammars"]
    return f"%json {json.dumps(part['json_schema'], ensure_ascii=False)}"


def _arguments(tool: Tool) -> str:
    """Return a Lark expression for the arguments of a tool."""
    try:
        return _json_expression(arguments_schema(tool))
    except ValueError as error:
        raise _tool_error(tool, str(error)) from error


def _compile_error(constraint: OutputConstraint, reason: str) -> InvalidRequest:
    if isinstance(constraint, AnswerGrammar):
        param, kind = ("tools", "calls") if constraint.tools else ("response_format", "answer")
    else:
        param, kind = "response_format", constraint.kind.value
    return InvalidRequest(param=param, reason=f"the {kind} cannot be compiled: {_shorten(reason)}")


def _tool_error(tool: Tool, reason: str) -> InvalidRequest:
    return InvalidRequest(
        param="tools",
        reason=f"the parameters of {tool.name!r} cannot be compiled: {_shorten(reason)}",
    )


def _shorten(reason: str) -> str:
    """Return an error message of llguidance as one line, without its listing of the grammar."""
    text = " ".join(_LISTING.sub("", reason.removeprefix(_JSON_POSITION)).split())
    return text if len(text) <= _MAX_REASON_CHARS else f"{text[:_MAX_REASON_CHARS]}..."
