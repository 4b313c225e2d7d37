"""Builds the AsyncAPI 3 document of the WebSockets from the models that the code uses.

"receive" and "send" are from the server's point of view, as in the standard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from app.asyncapi.channel import Channel, Message
from app.errors import ERRORS

SECURITY_SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "`Authorization: Bearer KEY` with one of the server's API keys. Not needed "
        "if the server has no keys.",
    },
    "subprotocol": {
        "type": "httpApiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": "For browsers, which cannot set headers: offer the subprotocols "
        "`tokenwire.v1` and `tokenwire.key.KEY`, with the key in base64url. The server selects "
        "`tokenwire.v1`.",
    },
}

_TITLE = "Tokenwire over WebSockets"
_DESCRIPTION = (
    "Streams the tokens of a language model over WebSockets; streams survive a dropped "
    "connection. Each message is one JSON object in one text frame, tagged by `type`."
)


def build_document(channels: Iterable[Channel], *, version: str) -> dict[str, Any]:
    """Return the document without `servers`, which depend on the request.

    Args:
        channels: all channels, in the order of the document.
        version: version of the API.
    """
    channels = tuple(channels)
    payloads, schemas = _schemas(channels)
    messages = {
        message_key(channel.name, message.name): _message(
            message, payloads[channel.name, message.name, mode]
        )
        for channel, message, mode in _all_messages(channels)
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": _TITLE,
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel) for channel in channels},
        "operations": {
            name: operation
            for channel in channels
            for name, operation in _operations(channel).items()
        },
        "components": {
            "messages": messages,
            "schemas": schemas,
            "securitySchemes": SECURITY_SCHEMES,
        },
        "x-errors": [
            {
                "code": code,
                "httpStatus": row.http_status,
                "type": row.type,
                "retryable": row.retryable,
                "closeCode": row.close_code,
            }
            for code, row in ERRORS.items()
        ],
    }


def describe_server(
    *, host: str, protocol: Literal["ws", "wss"], pathname: str
) -> dict[str, dict[str, str]]:
    """Return the document's `servers`, with the server of the current request as its only entry.

    Args:
        host: host name and port from the request.
        protocol: "wss" behind TLS.
        pathname: prefix of every address, or an empty string.
    """
    server = {"host": host, "protocol": protocol, "description": "This server."}
    return {"tokenwire": {**server, "pathname": pathname} if pathname else server}


def message_key(channel: str, name: str) -> str:
    """Return the key of a message in the document's components."""
    return f"{channel}.{_key(name)}"


def _key(name: str) -> str:
    return name.replace(":", ".")  # the standard allows no ":" in keys


class _Schema(GenerateJsonSchema):
    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Leave out `discriminator`: AsyncAPI does not know OpenAPI's form of it."""
        return {
            key: value
            for key, value in super().tagged_union_schema(schema).items()
            if key != "discriminator"
        }


_Key = tuple[str, str, JsonSchemaMode]
"""Names of channel and message, and whether the schema is for validation or serialization."""


def _all_messages(
    channels: Iterable[Channel],
) -> Iterable[tuple[Channel, Message, JsonSchemaMode]]:
    for channel in channels:
        for message in channel.received:
            yield channel, message, "validation"
        for message in channel.sent:
            yield channel, message, "serialization"


def _schemas(
    channels: Iterable[Channel],
) -> tuple[Mapping[_Key, Any], dict[str, Any]]:
    """Return the schema of each message, and the definitions that these refer to."""
    payloads, definitions = TypeAdapter.json_schemas(
        [
            ((channel.name, message.name, mode), mode, message.model)
            for channel, message, mode in _all_messages(channels)
        ],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schema,
    )
    by_message = {(channel, name, mode): s for ((channel, name, mode), _), s in payloads.items()}
    return by_message, definitions.get("$defs", {})


def _message(message: Message, payload: Any) -> dict[str, Any]:
    return {
        "name": message.name,
        "title": message.name,
        "contentType": "application/json",
        "payload": payload,
        "examples": [
            {"name": example.name, "payload": example.payload} for example in message.examples
        ],
    }


def _channel(channel: Channel) -> dict[str, Any]:
    binding: dict[str, Any] = {"method": "GET", "headers": channel.headers}
    if channel.query is not None:
        binding["query"] = channel.query
    return {
        "address": channel.address,
        "title": channel.title,
        "summary": channel.summary,
        "description": channel.description,
        "messages": {
            _key(message.name): {
                "$ref": f"#/components/messages/{message_key(channel.name, message.name)}"
            }
            for message in (*channel.received, *channel.sent)
        },
        "bindings": {"ws": {**binding, "bindingVersion": "0.1.0"}},
        "x-close-codes": [
            {"code": code, "meaning": meaning} for code, meaning in channel.close_codes.items()
        ],
    }


def _operations(channel: Channel) -> dict[str, Any]:
    reference = {"$ref": f"#/channels/{channel.name}"}
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in channel.security]

    def references(names: Iterable[str]) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/{channel.name}/messages/{_key(name)}"} for name in names]

    operations: dict[str, Any] = {}
    for message in channel.received:
        operation: dict[str, Any] = {
            "action": "receive",
            "channel": reference,
            "security": security,
            "messages": references([message.name]),
        }
        if replies := channel.replies[message.name]:
            operation["reply"] = {"channel": reference, "messages": references(replies)}
        operations[message_key(channel.name, message.name)] = operation
    operations[f"{channel.name}.tell"] = {
        "action": "send",
        "channel": reference,
        "security": security,
        "messages": references(channel.unsolicited),
    }
    return operations
