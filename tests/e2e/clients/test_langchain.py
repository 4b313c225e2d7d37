"""LangChain's OpenAI client."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]


@tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It rains in {city}."


@pytest.fixture
def model(model_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> ChatOpenAI:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    return ChatOpenAI(
        model="SmolLM2-135M-Instruct",
        base_url=f"{model_server.url}/v1",
        api_key="none",
        temperature=0,
        max_tokens=40,
        stream_usage=True,
    )


def joined(chunks: Iterable[object]) -> AIMessageChunk:
    whole: AIMessageChunk | None = None
    for chunk in chunks:
        assert isinstance(chunk, AIMessageChunk)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


def test_a_streamed_chat(model: ChatOpenAI) -> None:
    chunks = list(model.stream("What is the capital of France?"))
    whole = joined(chunks)
    assert "Paris" in str(whole.content)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    assert len(chunks) > 4


def test_a_streamed_call_of_a_tool(model: ChatOpenAI) -> None:
    bound = model.bind_tools([get_weather], tool_choice="get_weather")
    whole = joined(bound.stream("What is the weather in Paris?"))
    [call] = whole.tool_calls
    assert call["name"] == "get_weather"
    assert isinstance(call["args"]["city"], str)
