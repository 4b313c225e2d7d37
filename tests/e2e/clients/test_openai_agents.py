"""OpenAI's agents library: over HTTP chat, HTTP responses, and its WebSocket transport."""

from __future__ import annotations

from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    OpenAIResponsesWSModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]

ASKED: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    ASKED.append(city)
    return "It is raining."


@pytest.mark.parametrize(
    "transport", [OpenAIChatCompletionsModel, OpenAIResponsesModel, OpenAIResponsesWSModel]
)
async def test_a_run_with_a_tool_and_two_turns(transport: Any, model_server: ServerProcess) -> None:
    set_tracing_disabled(True)
    ASKED.clear()
    async with AsyncOpenAI(base_url=f"{model_server.url}/v1", api_key="none") as client:
        model = transport("SmolLM2-135M-Instruct", client)
        agent = Agent(
            name="weather",
            instructions="Use the tool.",
            tools=[get_weather],
            model=model,
            model_settings=ModelSettings(
                temperature=0, max_tokens=64, tool_choice="required", parallel_tool_calls=False
            ),
            tool_use_behavior="stop_on_first_tool",  # so small a model may call it for ever
        )
        first = await Runner.run(agent, "What is the weather in Paris?")
        assert len(ASKED) == 1
        assert first.final_output == "It is raining."
        # To the library an answer that is cut by its length is an error.
        plain = agent.clone(tools=[], model_settings=ModelSettings(temperature=0, max_tokens=300))
        question = {"role": "user", "content": "What is the capital of France?"}
        turns: list[Any] = [*first.to_input_list(), question]
        streamed = Runner.run_streamed(plain, turns)
        kinds = [event.type async for event in streamed.stream_events()]
        assert "raw_response_event" in kinds
        assert streamed.final_output
        await model.close()
