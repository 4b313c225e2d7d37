from __future__ import annotations

from typing import Any

import pytest

from app.responses.compaction import to_compacted, to_summary_request
from app.responses.schemas.items import decode_summary
from app.responses.schemas.request import ResponseRequest
from streaming import ChatMessage, ChatPrompt, FinishReason, GenerationRequest, SamplingParams
from streaming.errors import EngineFailure
from tests.app.responses.logs import REASONING, make_log


def test_the_model_is_asked_for_a_summary():
    messages = (ChatMessage("user", "hi"), ChatMessage("assistant", "ho"))
    request = to_summary_request(
        GenerationRequest(prompt=ChatPrompt(messages), params=SamplingParams(temperature=1.5))
    )
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.messages[:-1] == messages
    assert request.prompt.messages[-1].role == "user"
    assert request.params == SamplingParams(temperature=0.0, max_tokens=1024)


def test_the_users_messages_stay_and_the_summary_replaces_the_rest():
    items = [
        {"role": "system", "content": "be nice"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "well"},
    ]
    body = ResponseRequest.model_validate({"input": items})
    log = make_log(
        *"<think>hm</think>They said hi.", end=FinishReason.LENGTH, output_format=REASONING
    )
    compacted = to_compacted(body.to_items("k"), log)
    output: list[Any] = [*compacted["output"]]
    *users, item = output
    assert [user["content"][0]["text"] for user in users] == ["hi", "well"]
    assert decode_summary(item["encrypted_content"]) == "They said hi."
    assert compacted["usage"]["output_tokens_details"] == {"reasoning_tokens": 17}


def test_an_empty_summary_is_a_failure():
    """For example, the model used all tokens for reasoning."""
    log = make_log(*"<think>well, hm", end=FinishReason.LENGTH, output_format=REASONING)
    with pytest.raises(EngineFailure):
        to_compacted(ResponseRequest(input="hi").to_items("k"), log)
