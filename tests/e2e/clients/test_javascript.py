"""OpenAI's JavaScript client on Node, over HTTP streaming."""

from __future__ import annotations

import json

import pytest

from tests.app.response_events import check_events
from tests.e2e.node import run_script
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.node, pytest.mark.timeout(300)]


def test_a_streamed_chat_and_a_streamed_response(model_server: ServerProcess) -> None:
    told = json.loads(run_script("stream.js", model_server.url))
    chat = told["chat"]
    assert "Paris" in chat["text"]
    assert (chat["finishReason"], chat["numChunks"] > 4) == ("stop", True)
    assert chat["usage"]["total_tokens"] > chat["usage"]["completion_tokens"] > 4
    assert check_events(told["events"])["output"][0]["content"][0]["text"] == chat["text"]
    assert told["text"] == chat["text"]
