"""`/v1/responses` with the real default model, called by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.app.response_events import check_events
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]

MODEL = "SmolLM2-135M-Instruct"
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=120)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="local", max_retries=0) as client:
        yield client


def test_a_conversation_goes_on_from_the_cache(client: openai.OpenAI):
    first = client.responses.create(
        model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=24
    )
    assert "Paris" in first.output_text
    second = client.responses.create(
        model=MODEL,
        input="And of Italy?",
        previous_response_id=first.id,
        temperature=0,
        max_output_tokens=24,
    )
    assert "Rome" in second.output_text
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_a_call_is_streamed_and_keeps_to_its_schema(client: openai.OpenAI):
    stream = client.responses.create(
        model=MODEL,
        input="How is the weather in Rome?",
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        stream=True,
    )
    response = check_events(
        [event.model_dump(by_alias=True, exclude_unset=True) for event in stream]
    )
    [called] = response["output"]
    assert (called["type"], called["name"]) == ("function_call", "get_weather")
    assert pydantic.TypeAdapter(dict[str, str]).validate_json(called["arguments"]).keys() == {
        "city"
    }


def test_an_answer_is_parsed(client: openai.OpenAI):
    parsed = client.responses.parse(
        model=MODEL, input="Make up a person.", text_format=Person, temperature=0
    )
    assert parsed.output_parsed is not None
