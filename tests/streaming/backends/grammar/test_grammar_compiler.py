"""What compiled grammars allow, and how invalid ones are refused."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from streaming.backends.grammar.grammar_compiler import LlguidanceCompiler
from streaming.errors import InvalidRequest
from streaming.output_constraint import Grammar, GrammarKind, GrammarMatcher
from tests.streaming.backends.tiny_models import ascii_tokenizer, rust_tokenizer

RUST = rust_tokenizer()
END, OTHER_END = 2, 0
SPECIAL_IDS = {0, 1, 2}
VOCAB_SIZE = RUST.get_vocab_size()
COMPILER = LlguidanceCompiler(RUST, eos_token_ids={END, OTHER_END}, vocab_size=VOCAB_SIZE)


def token(text: str) -> int:
    [token_id] = RUST.encode(text).ids
    return token_id


def regex(source: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, source)


def schema(source: Any) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(source))


def lark(source: str) -> Grammar:
    return Grammar(GrammarKind.LARK, source)


def matcher_of(grammar: Grammar, compiler: LlguidanceCompiler = COMPILER) -> GrammarMatcher:
    [matcher] = compiler.compile(grammar)
    return matcher


def allowed(matcher: GrammarMatcher) -> set[int]:
    mask = matcher.mask()
    return {i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1}


def letters(matcher: GrammarMatcher) -> set[str]:
    """Return the texts of the allowed tokens; end tokens are the empty text."""
    return {RUST.decode([token_id]) for token_id in allowed(matcher)}


def follow(grammar: Grammar, text: str) -> GrammarMatcher | None:
    """Return the matcher after a text, or None if its grammar does not allow the text."""
    matcher = matcher_of(grammar)
    for token_id in RUST.encode(text).ids:
        if token_id not in allowed(matcher):
            return None
        matcher.accept(token_id)
    return matcher


def allows(grammar: Grammar, text: str) -> bool:
    """Return whether the grammar allows the text as a whole."""
    matcher = follow(grammar, text)
    return matcher is not None and (matcher.is_done or END in allowed(matcher))


def test_a_regex_matches_from_end_to_end():
    assert letters(matcher_of(regex("he(l|y)"))) == {"h", "he", "hel"}
    assert allows(regex("he(l|y)"), "hey")
    assert not allows(regex("he(l|y)"), "he")


def test_end_tokens_are_allowed_exactly_where_the_text_can_end():
    matcher = matcher_of(regex("ab*"))
    assert not {END, OTHER_END} & allowed(matcher)
    matcher.accept(token("a"))
    assert allowed(matcher) == {END, OTHER_END, token("b")}
    assert not matcher.is_done
    matcher.accept(OTHER_END)
    assert matcher.is_done


def test_a_text_that_cannot_continue_is_done_without_an_end_token():
    matcher = follow(regex("ab"), "ab")
    assert matcher is not None
    assert matcher.is_done


def test_the_empty_text_can_be_the_only_one():
    matcher = matcher_of(regex(""))
    assert allowed(matcher) == {END, OTHER_END}


def test_a_token_outside_the_mask_fails_the_matcher(
    caplog: pytest.LogCaptureFixture,
):
    """llguidance itself would allow the end tokens now."""
    matcher = matcher_of(regex("ab"))
    matcher.accept(token("x"))
    with caplog.at_level(logging.WARNING):
        assert allowed(matcher) == set()
    assert not matcher.is_done
    assert "a grammar matcher failed" in caplog.text


@pytest.mark.parametrize("source", ["[^b]", "(.|\n)*"])
def test_special_tokens_are_never_text(source: str):
    matcher = matcher_of(regex(source))
    assert not SPECIAL_IDS - {END, OTHER_END} & allowed(matcher)


def test_unsupported_tokens_are_not_allowed():
    small = LlguidanceCompiler(RUST, eos_token_ids={END}, vocab_size=VOCAB_SIZE - 1)
    matcher = matcher_of(regex("hello"), small)
    assert {RUST.decode([token_id]) for token_id in allowed(matcher)} == {"h", "he"}


def test_a_vocabulary_can_fill_the_last_word_of_the_mask():
    """llguidance's mask is one word longer then, as with the default model."""
    full = rust_tokenizer(list("abcdefghijklmnopqrstuvwxyz0"))
    assert full.get_vocab_size() == 32
    compiler = LlguidanceCompiler(full, eos_token_ids={END}, vocab_size=32)
    assert allowed(matcher_of(regex("hello"), compiler)) == {*full.encode("h").ids, 30, 31}


def test_an_end_token_that_is_not_special_is_not_text():
    letter = token("b")
    compiler = LlguidanceCompiler(RUST, eos_token_ids={letter}, vocab_size=VOCAB_SIZE)
    matcher = matcher_of(regex("a[bc]?"), compiler)
    matcher.accept(token("a"))
    assert allowed(matcher) == {letter, token("c")}
    matcher.accept(letter)
    assert matcher.is_done


def test_without_end_tokens_a_text_ends_where_nothing_can_follow():
    compiler = LlguidanceCompiler(RUST, eos_token_ids=(), vocab_size=VOCAB_SIZE)
    matcher = matcher_of(regex("a"), compiler)
    matcher.accept(token("a"))
    assert matcher.is_done


PERSON = schema(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ('{"name":"Ada","age":36}', True),
        ('{ "name" : "Ada é 日 😀 \\n",\n  "age" : -1 }', True),
        ('{"age":36,"name":"Ada"}', False),  # not in the schema's order
        ('{"name":"Ada"}', False),
        ('{"name":"Ada","age":3.5}', False),
        ('{"name":"Ada","age":36} ', False),
        (' {"name":"Ada","age":36}', False),
        ("{" + " " * 40 + '"name":"","age":0}', True),
        ("{" + " " * 41 + '"name":"","age":0}', False),  # a model could write spaces forever
    ],
)
def test_a_schema_allows_valid_json(text: str, is_allowed: bool):
    assert allows(PERSON, text) is is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [("{}", True), ('{"a":[1,{"b":null}]}', True), ("[]", False), ("1", False), ("", False)],
)
def test_json_object_allows_any_object(text: str, is_allowed: bool):
    assert allows(Grammar(GrammarKind.JSON_OBJECT), text) is is_allowed


def test_a_lark_grammar_can_recurse():
    grammar = lark('start: "(" start ")" | "x"')
    assert allows(grammar, "((x))")
    assert not allows(grammar, "((x)")


@pytest.mark.parametrize(
    "grammar",
    [
        lark('start: "<|im_start|>" /<[0-9]>/ // <|im_end|>\n# <x>\n'),
        regex(r"<\|im_start\|><7>"),
        schema({"const": "<|im_start|><7>"}),
    ],
    ids=["lark", "regex", "schema"],
)
def test_text_spelled_like_a_special_token_is_made_of_text_tokens(grammar: Grammar):
    matcher = matcher_of(grammar)
    for letter in "<|im_start|><7>" if grammar.kind != "json_schema" else '"<|im_start|><7>"':
        assert token(letter) in allowed(matcher)
        assert not SPECIAL_IDS & allowed(matcher)
        matcher.accept(token(letter))
    assert matcher.is_done


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (regex("("), "unclosed group"),
        (regex("(?=a)b"), "look-around"),
        (regex(r"(a)\1"), "backreferences are not supported"),
        (Grammar(GrammarKind.JSON_SCHEMA, "{"), "EOF while parsing"),
        (Grammar(GrammarKind.JSON_SCHEMA, "[]"), "Expecting object"),
        (schema({"type": "thing"}), "Invalid type: thing"),
        (schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (schema({"$ref": "http://127.0.0.1/x"}), "retrieving it failed"),
        (schema({"enum": []}), "Unsatisfiable schema"),
        (schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (
            schema({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}),
            "Unimplemented keys",
        ),
        (lark("\n "), "it is empty"),
        (lark("start: x"), 'unknown name: "x"'),
        (lark('start: "a" <|im_start|>'), "special tokens are not allowed: <|im_start|>"),
        (lark('start: "a" <|im_end|> "b"'), "special tokens are not allowed: <|im_end|>"),
        (lark("start: <[1]>"), "special tokens are not allowed: <[1]>"),
        (lark('start: "\\"" <[*]> "a"'), "special tokens are not allowed: <[*]>"),
    ],
)
def test_an_invalid_grammar_is_refused_with_the_reason(grammar: Grammar, reason: str):
    with pytest.raises(InvalidRequest) as caught:
        COMPILER.compile(grammar)
    assert caught.value.param == "response_format"
    assert caught.value.reason.startswith(f"the {grammar.kind} cannot be compiled: ")
    assert reason in caught.value.reason


def test_a_reason_is_one_short_line():
    with pytest.raises(InvalidRequest) as caught:
        COMPILER.compile(regex("(" + "a" * 10_000))
    assert len(caught.value.reason) < 400
    assert "\n" not in caught.value.reason


def test_a_reason_has_no_internals_of_llguidance():
    with pytest.raises(InvalidRequest) as caught:
        COMPILER.compile(schema({"type": "thing"}))
    assert caught.value.reason == "the json_schema cannot be compiled: Invalid type: thing"


def test_a_grammar_that_no_token_can_start_is_refused():
    ascii_only = ascii_tokenizer().backend_tokenizer
    compiler = LlguidanceCompiler(ascii_only, eos_token_ids={END}, vocab_size=100)
    with pytest.raises(InvalidRequest, match="no token of this model"):
        compiler.compile(regex("日"))


def test_a_grammar_beyond_the_limits_is_refused():
    many = {"anyOf": [{"properties": {f"{i}": {"type": "string"}}} for i in range(12)]}
    with pytest.raises(InvalidRequest, match="schema too large"):
        COMPILER.compile(schema({"allOf": [many] * 6}))


def test_matchers_of_one_grammar_are_independent():
    first, second = COMPILER.compile(regex("a|bc"), count=2)
    first.accept(token("a"))
    assert first.is_done
    assert not second.is_done
    assert letters(second) == {"a", "b"}
