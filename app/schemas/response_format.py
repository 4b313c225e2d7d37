"""`response_format`, which constrains the answer: OpenAI's forms, and two of our own."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.schemas.wire_model import WireModel
from streaming import Grammar, GrammarKind
from streaming.errors import InvalidRequest

_TYPES = ("text", "json_object", "json_schema", "regex", "grammar")


class TextFormat(WireModel):
    """Any text."""

    type: Literal["text"]

    def to_grammar(self) -> Grammar | None:
        """Return None: any text is allowed."""
        return None


class JsonObjectFormat(WireModel):
    """One JSON object. Ask for JSON in the prompt as well: the model does not see this field."""

    type: Literal["json_object"]

    def to_grammar(self) -> Grammar | None:
        """Return the grammar of JSON objects."""
        return Grammar(GrammarKind.JSON_OBJECT)


class JsonSchemaFields(WireModel):
    """A JSON schema and its labels."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="A label.")]
    description: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="A label. The model does not see it."
    )
    schema_: dict[str, Any] = Field(alias="schema", description="A JSON schema.")
    strict: bool | None = Field(None, description="No effect: an answer always matches its schema.")


class JsonSchemaFormat(WireModel):
    """One JSON value that matches a schema, with its fields in the order of the schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFields

    def to_grammar(self) -> Grammar | None:
        """Return the schema as a grammar.

        Raises:
            InvalidRequest: the schema is nested too deeply.
        """
        try:
            source = json.dumps(self.json_schema.schema_, ensure_ascii=False)
        except RecursionError as error:
            raise InvalidRequest(param="response_format", reason="is nested too deeply") from error
        return Grammar(GrammarKind.JSON_SCHEMA, source)


class RegexFormat(WireModel):
    """Text that matches a regular expression as a whole. Look-around is not supported."""

    type: Literal["regex"]
    pattern: str

    def to_grammar(self) -> Grammar | None:
        """Return the regular expression as a grammar."""
        return Grammar(GrammarKind.REGEX, self.pattern)


class GrammarFormat(WireModel):
    """Text that matches a context-free grammar in Lark's syntax. It starts at the rule `start`."""

    type: Literal["grammar"]
    grammar: str
    syntax: Literal["lark"]

    def to_grammar(self) -> Grammar | None:
        """Return the Lark grammar."""
        return Grammar(GrammarKind.LARK, self.grammar)


def _tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"format[{kind}]" if kind in _TYPES else None


# The tags look like those of pydantic's unions, so that `validation` removes them from locations.
ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("format[text]")]
    | Annotated[JsonObjectFormat, Tag("format[json_object]")]
    | Annotated[JsonSchemaFormat, Tag("format[json_schema]")]
    | Annotated[RegexFormat, Tag("format[regex]")]
    | Annotated[GrammarFormat, Tag("format[grammar]")],
    Discriminator(
        _tag,
        custom_error_type="response_format_type",
        custom_error_message=f"must be an object whose type is one of {', '.join(_TYPES)}",
    ),
]
