from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.stream.schemas.messages import (
    CLIENT_MESSAGE,
    CLIENT_MESSAGE_TYPES,
    CancelMessage,
    GenerateMessage,
    ResumeMessage,
)
from streaming import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from streaming.errors import InvalidRequest


def generate(**fields: Any) -> GenerateMessage:
    return GenerateMessage(type="generate", **fields)


def test_a_message_for_each_type() -> None:
    messages = [
        CLIENT_MESSAGE.validate_python({"type": "generate", "prompt": "hi"}),
        CLIENT_MESSAGE.validate_python({"type": "cancel", "id": "a"}),
        CLIENT_MESSAGE.validate_python({"type": "resume", "generation_id": "g", "after": -1}),
    ]
    types = [GenerateMessage, CancelMessage, ResumeMessage]
    assert [type(message) for message in messages] == types
    assert tuple(message.type for message in messages) == CLIENT_MESSAGE_TYPES


def test_generate_becomes_a_request() -> None:
    message = generate(prompt="hi", model="m", max_tokens=5, logprobs=2, metadata={"page": "7"})
    assert message.to_request(caller="me") == GenerationRequest(
        prompt=TextPrompt("hi"),
        params=SamplingParams(max_tokens=5, logprobs=2),
        caller="me",
        model="m",
        metadata={"page": "7"},
    )


@pytest.mark.parametrize(
    ("fields", "prompt", "max_tokens"),
    [
        ({"prompt": "hi"}, TextPrompt("hi"), 16),
        ({"prompt": [1, 2]}, TokenPrompt((1, 2)), 16),
        (
            {"messages": [{"role": "user", "content": "hi"}]},
            ChatPrompt((ChatMessage("user", "hi"),)),
            None,
        ),
    ],
)
def test_only_a_raw_prompt_has_a_default_length(
    fields: dict[str, Any], prompt: object, max_tokens: int | None
) -> None:
    request = generate(**fields).to_request(caller="me")
    assert (request.prompt, request.params.max_tokens) == (prompt, max_tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt: is required unless messages are given"),
        (
            {"prompt": "", "messages": []},
            "messages: cannot be combined with prompt; give one of them",
        ),
    ],
)
def test_generate_takes_a_prompt_or_messages(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generate(**fields).to_request(caller="me")
    assert str(caught.value) == message


@pytest.mark.parametrize("stream_id", ["a", "A-z_0.9", "a" * 64])
def test_valid_stream_ids(stream_id: str) -> None:
    assert CancelMessage(type="cancel", id=stream_id).id == stream_id


@pytest.mark.parametrize("stream_id", ["", "a b", "a\n", "é", "a" * 65])
def test_invalid_stream_ids(stream_id: str) -> None:
    for message in (
        {"type": "generate", "prompt": "hi"},
        {"type": "cancel"},
        {"type": "resume", "generation_id": "g", "after": -1},
    ):
        with pytest.raises(ValidationError, match="id"):
            CLIENT_MESSAGE.validate_python({**message, "id": stream_id})
