from __future__ import annotations

from typing import Any

import pytest

from app.openai.schemas.tokenize import TokenizeRequest
from streaming import ChatMessage, ChatPrompt, TextPrompt
from streaming.errors import InvalidRequest
from tests.app.chat_answers import ask


@pytest.mark.parametrize("add_special_tokens", [None, True])
def test_a_raw_prompt(add_special_tokens: bool | None):
    body = TokenizeRequest(prompt="a", model="m", add_special_tokens=add_special_tokens)
    request = body.to_request(caller="me")
    assert (request.prompt, request.caller, request.model) == (TextPrompt("a"), "me", "m")


@pytest.mark.parametrize("add_special_tokens", [None, False])
def test_a_conversation(add_special_tokens: bool | None):
    body = TokenizeRequest.model_validate(
        {
            "messages": ask(),
            "add_special_tokens": add_special_tokens,
            "add_generation_prompt": False,
        }
    )
    prompt = body.to_request(caller="me").prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == (ChatMessage("user", "hi"),)
    assert not prompt.add_generation_prompt


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt: is required without messages"),
        ({"prompt": "a", "messages": ask()}, "messages: must be omitted if a prompt is given"),
        (
            {"prompt": "a", "add_special_tokens": False},
            "add_special_tokens: must be true with a prompt and false with messages",
        ),
        (
            {"messages": ask(), "add_special_tokens": True},
            "add_special_tokens: must be true with a prompt and false with messages",
        ),
    ],
)
def test_anything_but_one_prompt_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(InvalidRequest) as caught:
        TokenizeRequest.model_validate(fields).to_request(caller="me")
    assert str(caught.value) == message
