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

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

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
            # After a call the library lets the model choose, so that the run can end.
            model_settings=ModelSettings(temperature=0, max_tokens=40, tool_choice="required"),
        )
        first = await Runner.run(agent, "What is the weather in Paris?", max_turns=4)
        assert ASKED
        assert str(first.final_output)
        plain = agent.clone(tools=[], model_settings=ModelSettings(temperature=0, max_tokens=16))
        turns: list[Any] = [
            *first.to_input_list(),
            {"role": "user", "content": "What is the capital?"},
        ]
        streamed = Runner.run_streamed(plain, turns)
        kinds = [event.type async for event in streamed.stream_events()]
        assert "raw_response_event" in kinds
        assert str(streamed.final_output)
        await model.close()
