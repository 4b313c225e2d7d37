from __future__ import annotations

import json
from functools import reduce
from typing import Any

import pytest
from pydantic import ValidationError

from app.openai.schemas.completions import CompletionRequest
from app.schemas.sampling import SamplingFields
from app.schemas.validation import to_error_info
from app.stream.schemas.messages import GenerateMessage
from streaming import Grammar, GrammarKind
from streaming.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"b": {"const": "é"}, "a": {}}}


def grammar_of(response_format: Any) -> Grammar | None:
    fields = SamplingFields.model_validate({"response_format": response_format})
    return fields.to_sampling_params().grammar


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar(GrammarKind.JSON_OBJECT)),
        ({"type": "regex", "pattern": "a+"}, Grammar(GrammarKind.REGEX, "a+")),
        (
            {"type": "grammar", "grammar": 'start: "a"', "syntax": "lark"},
            Grammar(GrammarKind.LARK, 'start: "a"'),
        ),
    ],
)
def test_each_form_has_its_grammar(response_format: Any, expected: Grammar | None):
    assert grammar_of(response_format) == expected


@pytest.mark.parametrize("more", [{}, {"strict": True}, {"strict": False}, {"description": "x"}])
def test_a_schema_keeps_its_order_and_its_letters(more: dict[str, Any]):
    fields = {"name": "thing", "schema": SCHEMA, **more}
    grammar = grammar_of({"type": "json_schema", "json_schema": fields})
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON_SCHEMA
    assert json.loads(grammar.source) == SCHEMA
    assert grammar.source.index('"b"') < grammar.source.index('"a"')
    assert "é" in grammar.source


@pytest.mark.parametrize("model", [CompletionRequest, GenerateMessage])
def test_both_dialects_accept_it(model: type[CompletionRequest] | type[GenerateMessage]):
    fields = {"prompt": "a", "response_format": {"type": "json_object"}}
    if model is GenerateMessage:
        fields["type"] = "generate"
    params = model.model_validate(fields).to_sampling_params()
    assert params.grammar == Grammar(GrammarKind.JSON_OBJECT)


BAD: list[tuple[Any, str]] = [
    ("json_object", "response_format"),
    ([], "response_format"),
    ({}, "response_format"),
    ({"type": "xml"}, "response_format"),
    ({"type": ["json_object"]}, "response_format"),
    ({"type": "json_object", "strict": True}, "response_format.strict"),
    ({"type": "text", "pattern": "a"}, "response_format.pattern"),
    ({"type": "regex"}, "response_format.pattern"),
    ({"type": "regex", "pattern": 5}, "response_format.pattern"),
    ({"type": "grammar", "grammar": "start: x"}, "response_format.syntax"),
    ({"type": "grammar", "grammar": "", "syntax": "gbnf"}, "response_format.syntax"),
    ({"type": "json_schema"}, "response_format.json_schema"),
    ({"type": "json_schema", "schema": {}}, "response_format.json_schema"),
    ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
    (
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        "response_format.json_schema.name",
    ),
    ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema"),
    (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": "{}"}},
        "response_format.json_schema.schema",
    ),
]


@pytest.mark.parametrize(("response_format", "param"), BAD, ids=lambda value: repr(value)[:60])
def test_a_bad_form_is_refused_by_name(response_format: Any, param: str):
    with pytest.raises(ValidationError) as invalid:
        grammar_of(response_format)
    assert to_error_info(invalid.value.errors()).param == param


def test_an_unknown_type_is_answered_with_the_known_ones():
    with pytest.raises(ValidationError) as invalid:
        grammar_of({"type": "xml"})
    assert to_error_info(invalid.value.errors()).message == (
        "response_format: must be an object whose type is one of "
        "text, json_object, json_schema, regex, grammar"
    )


def test_a_form_that_is_too_long_or_too_deep_is_refused_by_name():
    deep: dict[str, Any] = reduce(lambda inner, _: {"items": inner}, range(200_000), {})
    for fields in (
        {"type": "regex", "pattern": "a" * 70_000},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "a" * 70_000}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": deep}},
    ):
        with pytest.raises(InvalidRequest) as caught:
            grammar_of(fields)
        assert caught.value.param == "response_format"
