"""The field `text` of a Responses request: the format of the answer."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.schemas.response_format import JsonObjectFormat, JsonSchemaFields, TextFormat
from app.schemas.wire_model import WireModel
from streaming import Grammar, GrammarKind
from streaming.errors import InvalidRequest

_TYPES = ("text", "json_object", "json_schema")


class JsonSchemaTextFormat(JsonSchemaFields):
    """A JSON value that follows a schema, with its fields in the schema's order."""

    type: Literal["json_schema"]

    def to_grammar(self) -> Grammar | None:
        """Return the grammar of the schema.

        Raises:
            InvalidRequest: the schema is nested too deeply for JSON.
        """
        try:
            source = json.dumps(self.schema_, ensure_ascii=False)
        except RecursionError as error:
            raise InvalidRequest(param="text.format", reason="is nested too deeply") from error
        return Grammar(GrammarKind.JSON_SCHEMA, source)


def _tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"format[{kind}]" if kind in _TYPES else None


class TextFields(WireModel):
    """The format of the answer's text."""

    format: (
        Annotated[
            Annotated[TextFormat, Tag("format[text]")]
            | Annotated[JsonObjectFormat, Tag("format[json_object]")]
            | Annotated[JsonSchemaTextFormat, Tag("format[json_schema]")],
            Discriminator(
                _tag,
                custom_error_type="text_format_type",
                custom_error_message=f"must be an object whose type is one of {', '.join(_TYPES)}",
            ),
        ]
        | None
    ) = Field(None, description="By default, any text.")
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="No effect; returned unchanged."
    )

    def to_grammar(self) -> Grammar | None:
        """Return the grammar that the text must follow; None allows any text.

        Raises:
            InvalidRequest: the schema is nested too deeply for JSON.
        """
        return None if self.format is None else self.format.to_grammar()

    def echo(self) -> dict[str, Any]:
        """Return the field as the response repeats it."""
        echoed: dict[str, Any] = {"format": {"type": "text"}}
        if isinstance(self.format, JsonSchemaTextFormat):
            echoed["format"] = {
                "type": "json_schema",
                "name": self.format.name,
                "description": self.format.description,
                "schema": self.format.schema_,
                "strict": True,
            }
        elif self.format is not None:
            echoed["format"] = {"type": self.format.type}
        if self.verbosity is not None:
            echoed["verbosity"] = self.verbosity
        return echoed
