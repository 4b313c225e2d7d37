"""How the docs describe an answer that is a stream of Server-Sent Events."""

from __future__ import annotations

from typing import Any


def event_stream(chunk: str) -> dict[str, Any]:
    """Return what a route documents for its event stream, by media type.

    Args:
        chunk: name of the schema, among the document's components, that each event's data has,
            except for the last.
    """
    data = [
        {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": f"#/components/schemas/{chunk}"},
        },
        {"const": "[DONE]"},
    ]
    item = {"type": "object", "properties": {"data": {"anyOf": data}}, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": item}}
