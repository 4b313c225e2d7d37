"""The AsyncAPI 3 document of the WebSockets, made from the models that the code itself uses.

What is received and sent is said from the server's side, as the standard has it.
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
        "description": "`Authorization: Bearer KEY` with one of the server's API keys. A server "
        "without keys asks for none.",
    },
    "subprotocol": {
        "type": "httpApiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": "For browsers, which cannot set headers: offer the subprotocols "
        "`tokenwire.v1` and `tokenwire.key.KEY`, with the key in base64url; the server chooses "
        "`tokenwire.v1`.",
    },
}

_TITLE = "Tokenwire over WebSockets"
_DESCRIPTION = (
    "A language model whose tokens stream over WebSockets that survive a dropped line. All "
    "messages are JSON objects in text frames, one object a frame; `type` tells which."
)


def build_document(channels: Iterable[Channel], *, version: str) -> dict[str, Any]:
    """Return the document without its `servers`, which depend on who asks.

    Args:
        channels: all of it; they are listed in this order.
        version: of the API.
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


def server_of(
    *, host: str, protocol: Literal["ws", "wss"], pathname: str
) -> dict[str, dict[str, str]]:
    """Return the document's `servers`: the one that was asked.

    Args:
        host: its name and port, as the client calls it.
        pathname: what stands before every address, or nothing.
    """
    server = {"host": host, "protocol": protocol, "description": "The server that you asked."}
    return {"tokenwire": {**server, "pathname": pathname} if pathname else server}


def message_key(channel: str, name: str) -> str:
    """Return what a message is called among the document's components."""
    return f"{channel}.{_key(name)}"


def _key(name: str) -> str:
    return name.replace(":", ".")  # which the standard does not allow there


class _Schema(GenerateJsonSchema):
    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Leave out `discriminator`: OpenAPI's form of it is none that AsyncAPI knows."""
        return {
            key: value
            for key, value in super().tagged_union_schema(schema).items()
            if key != "discriminator"
        }


_Key = tuple[str, str, JsonSchemaMode]
"""Channel, message, and which side of the model: what it takes, or what it makes."""


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
    """Return the schema of each message, and what those refer to."""
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
        "messages": references(channel.unasked),
    }
    return operations
