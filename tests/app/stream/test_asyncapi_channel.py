"""The description of `WS /v1/stream` against the protocol core."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.errors import ERRORS
from app.stream.asyncapi_channel import stream_channel
from app.stream.protocol import ResumeGeneration, StartGeneration, StreamProtocol
from app.stream.schemas.messages import CLIENT_MESSAGE_TYPES
from tests.app.described import DOCUMENT

CHANNEL = stream_channel()
EXAMPLES = [
    pytest.param(example.payload, id=f"{message.name}-{example.name}")
    for message in CHANNEL.received
    for example in message.examples
]


@pytest.mark.parametrize("payload", EXAMPLES)
def test_the_protocol_core_accepts_each_example(payload: dict[str, Any]) -> None:
    core = StreamProtocol(caller="me", token_text=str, max_streams=8, max_messages_per_s=1e6)
    if payload["type"] == "cancel":
        core.receive_text(json.dumps({"type": "generate", "prompt": "", "id": "story"}), now=0)
    core.receive_text(json.dumps(payload), now=0)
    assert [*core.frames_to_send()] == []
    [command] = core.commands()
    expected = {"resume": ResumeGeneration}.get(payload["type"], StartGeneration)
    assert isinstance(command, expected)


def test_every_client_message_is_described() -> None:
    assert tuple(message.name for message in CHANNEL.received) == CLIENT_MESSAGE_TYPES


def test_the_close_codes_of_errors_are_described() -> None:
    assert {row.close_code for row in ERRORS.values()} - {None} <= CHANNEL.close_codes.keys()
    assert DOCUMENT["channels"]["stream"]["address"] == CHANNEL.address == "/v1/stream"
