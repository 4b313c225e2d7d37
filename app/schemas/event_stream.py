"""How the docs describe an answer that is a stream of Server-Sent Events."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.schemas.error import ErrorBody


def event_stream(chunk: type[BaseModel]) -> dict[str, Any]:
    """Return what a route documents for its event stream, by media type.

    `itemSchema` is what OpenAPI 3.2 describes one event with; older tools skip it.

    Args:
        chunk: what the data of each event is, save for the last, and for the error that may come
            before that.
    """
    data = [*(_json_of(model) for model in (chunk, ErrorBody)), {"const": "[DONE]"}]
    item = {"type": "object", "properties": {"data": {"anyOf": data}}, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": item}}


def _json_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="serialization")
    whole = _inlined(schema, schema.pop("$defs", {}))
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": whole}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return the schema without references, which would look for their target in the document."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if (reference := schema.get("$ref")) is not None:
        return _inlined(definitions[reference.rpartition("/")[2]], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}
