"""Checks WebSocket messages against `/asyncapi.json`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from app.asyncapi.document import message_key
from app.asyncapi.route import asyncapi_document

DOCUMENT = asyncapi_document("test")


def assert_described(channel: str, message: Mapping[str, Any]) -> None:
    """Assert that the message matches its schema in the document.

    Stricter than the document: fields that the schema does not name are errors.
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
    """Return the schema with `additionalProperties` set to false in every object."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed
