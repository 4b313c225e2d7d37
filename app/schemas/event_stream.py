"""Describes a stream of Server-Sent Events in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.schemas.error import ErrorBody


def event_stream(chunk: type[BaseModel]) -> dict[str, Any]:
    """Return the `content` of a response that is an event stream, by media type.

    `itemSchema` describes one event, as of OpenAPI 3.2. Older tools ignore it.

    Args:
        chunk: the data of an event. An error may follow the chunks; `[DONE]` is always last.
    """
    data = [*(_json_of(model) for model in (chunk, ErrorBody)), {"const": "[DONE]"}]
    item = {"type": "object", "properties": {"data": {"anyOf": data}}, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": item}}


def _json_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="serialization")
    whole = _inlined(schema, schema.pop("$defs", {}))
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": whole}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return the schema with its references inlined; they would resolve in the whole document."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if (reference := schema.get("$ref")) is not None:
        return _inlined(definitions[reference.rpartition("/")[2]], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}
