"""Whether a message on a WebSocket is what `/asyncapi.json` says it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from app.asyncapi.document import message_key
from app.asyncapi.route import build

DOCUMENT = build("test")


def assert_described(channel: str, message: Mapping[str, Any]) -> None:
    """Assert that the document has this message, with each of its fields.

    Stricter than the document, which leaves room for fields of a later version.
    """
    name = message_key(channel, message["type"])
    error = next(_validator(name).iter_errors(message), None)
    assert error is None, f"{name} at {error.json_path}: {error.message}"


@cache
def _validator(name: str) -> Draft202012Validator:
    payload = DOCUMENT["components"]["messages"][name]["payload"]
    schemas = {key: _closed(schema) for key, schema in DOCUMENT["components"]["schemas"].items()}
    return Draft202012Validator({**_closed(payload), "components": {"schemas": schemas}})


def _closed(schema: Any) -> Any:
    """Return the schema with no room for fields that it does not name."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed
