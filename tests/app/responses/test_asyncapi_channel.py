"""The description of `WS /v1/responses` against the protocol core."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.responses.asyncapi_channel import responses_channel
from app.responses.protocol.connection_age import ConnectionAge
from app.responses.protocol.core import ResponsesProtocol
from app.responses.schemas.socket import CONTROL_TYPES, CREATE, RESUME
from tests.app.described import DOCUMENT

CHANNEL = responses_channel()
EXAMPLES = [
    pytest.param(example.payload, id=f"{message.name}-{example.name}")
    for message in CHANNEL.received
    for example in message.examples
]


@pytest.mark.parametrize("payload", EXAMPLES)
def test_the_server_accepts_each_example(payload: dict[str, Any]) -> None:
    core: ResponsesProtocol[Any] = ResponsesProtocol(
        age=ConnectionAge(opened_at=0, max_s=1e6), max_turns=8, max_messages_per_s=1e6
    )
    core.receive_text(json.dumps(payload), now=0)
    frames: list[Any] = list(core.frames_to_send())
    codes = {frame["error"]["code"] for frame in frames}
    # The messages are valid, but nothing runs on this socket that they could cancel or steer.
    assert codes <= {"response_not_found", "steering_not_supported"}
    begins_turn = payload["type"] in (CREATE, RESUME)
    assert len(core.commands()) == begins_turn


def test_every_message_of_a_client_is_described() -> None:
    assert {message.name for message in CHANNEL.received} == {CREATE, *CONTROL_TYPES}
    assert DOCUMENT["channels"]["responses"]["address"] == CHANNEL.address == "/v1/responses"
