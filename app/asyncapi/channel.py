"""The parts of an AsyncAPI document for one WebSocket: its messages, and which reply to which.

Each dialect describes its socket with these types; `app.asyncapi.document` builds the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Example:
    """An example message, as sent on the wire."""

    name: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """A type of message.

    Attributes:
        name: the value of its `type` field.
        model: validates or serializes it; the model's docstring describes the message.
        examples: each valid for `model`.
    """

    name: str
    model: TypeAdapter[Any]
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Channel:
    """A WebSocket address and its messages.

    Attributes:
        name: unique in the document.
        address: path of the WebSocket.
        title: a heading.
        summary: one sentence.
        description: Markdown.
        security: names of `document.SECURITY_SCHEMES`; a client needs one of them.
        headers: JSON schema of the handshake's headers.
        received: messages from the client.
        sent: messages from the server.
        replies: for each received message, the names of the messages that reply to it.
        unsolicited: names of the sent messages that reply to no message.
        close_codes: what each close code means on this socket (RFC 6455 §7.4.1).
        query: JSON schema of the handshake's query parameters.
    """

    name: str
    address: str
    title: str
    summary: str
    description: str
    security: tuple[Literal["bearer", "subprotocol"], ...]
    headers: Mapping[str, Any]
    received: tuple[Message, ...]
    sent: tuple[Message, ...]
    replies: Mapping[str, tuple[str, ...]]
    unsolicited: tuple[str, ...]
    close_codes: Mapping[int, str]
    query: Mapping[str, Any] | None = None
