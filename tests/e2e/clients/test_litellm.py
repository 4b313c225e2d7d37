"""LiteLLM's OpenAI client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library, told to be silent before it is imported: it would fetch a price list.

    It wants an event loop to be the thread's own and would leave one behind: it is lent one.
    """
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    import litellm

    monkeypatch.setattr(litellm, "telemetry", False)
    yield litellm
    asyncio.set_event_loop(None)
    loop.close()


def test_a_streamed_chat(litellm: Any, model_server: ServerProcess) -> None:
    stream = litellm.completion(
        model="openai/SmolLM2-135M-Instruct",
        api_base=f"{model_server.url}/v1",
        api_key="none",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert "Paris" in text
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
        "stop"
    ]
