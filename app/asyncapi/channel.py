"""What an AsyncAPI document says of one WebSocket: its messages, and which of them answer which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Example:
    """A message as it is on the wire."""

    name: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One kind of message.

    Attributes:
        name: what its `type` says.
        model: checks it, or makes it; its docstring is the message's description.
        examples: each valid by `model`.
    """

    name: str
    model: TypeAdapter[Any]
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Channel:
    """One WebSocket address.

    Attributes:
        name: unique in the document.
        security: names of `document.SECURITY_SCHEMES`, any of which lets a client in.
        headers: a JSON schema of the handshake's headers that matter.
        query: the same of its query parameters.
        received: what a client says.
        sent: what the server says.
        replies: names of what the server says to a message, by the name of that.
        unasked: names of what the server may say to nothing in particular.
        close_codes: what each of them means here (RFC 6455 §7.4.1).
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
    unasked: tuple[str, ...]
    close_codes: Mapping[int, str]
    query: Mapping[str, Any] | None = None
