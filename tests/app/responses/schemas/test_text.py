from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.responses.schemas.text import TextFields
from streaming import GrammarKind

SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}, "a": {"type": "null"}}}


@pytest.mark.parametrize("fields", [{}, {"format": None}, {"format": {"type": "text"}}])
def test_any_text_needs_no_grammar(fields: dict[str, Any]):
    text = TextFields.model_validate(fields)
    assert text.to_grammar() is None
    assert text.echo() == {"format": {"type": "text"}}


def test_a_schema_becomes_a_grammar_with_its_fields_in_order():
    text = TextFields.model_validate(
        {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"}
    )
    grammar = text.to_grammar()
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON_SCHEMA
    assert json.loads(grammar.source, object_pairs_hook=list) == [
        ("type", "object"),
        ("properties", [("é", [("type", "integer")]), ("a", [("type", "null")])]),
    ]
    assert text.echo() == {
        "format": {
            "type": "json_schema",
            "name": "n",
            "description": None,
            "schema": SCHEMA,
            "strict": True,
        },
        "verbosity": "low",
    }


def test_a_json_object_is_repeated_without_a_schema():
    text = TextFields.model_validate({"format": {"type": "json_object"}})
    assert text.to_grammar() is not None
    assert text.echo() == {"format": {"type": "json_object"}}


@pytest.mark.parametrize("value", ["json", {"type": "regex"}, {}, 5])
def test_an_unknown_format_is_refused_with_the_known_ones(value: Any):
    with pytest.raises(ValidationError, match="text, json_object, json_schema"):
        TextFields.model_validate({"format": value})
