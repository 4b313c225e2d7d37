"""OpenAI's own Python client, plain and asynchronous, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.app.response_events import check_events, check_response
from tests.e2e.clients.either import each, entered, result
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]

QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "The weather now.", "parameters": PARAMETERS}


class City(BaseModel):
    """What the model has to say, in this form."""

    name: str
    is_capital: bool


@pytest.fixture(params=[OpenAI, AsyncOpenAI], ids=["sync", "async"])
async def client(request: pytest.FixtureRequest, model_server: ServerProcess):
    client = request.param(base_url=f"{model_server.url}/v1", api_key="none", max_retries=0)
    async with entered(client):
        yield client


@pytest.fixture
async def model(client: Any) -> str:
    [served] = (await result(client.models.list())).data
    assert (await result(client.models.retrieve(served.id))).id == served.id
    return str(served.id)


async def test_chat_whole_and_streamed(client: Any, model: str) -> None:
    asked = {"model": model, "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 24}
    whole = await result(client.chat.completions.create(**asked))
    stream = await result(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    chunks = [chunk async for chunk in each(stream)]
    [choice] = whole.choices
    assert "Paris" in choice.message.content
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert (text, reasons) == (choice.message.content, [choice.finish_reason])
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len(chunks) > 4


async def test_completions_whole_and_streamed(client: Any, model: str) -> None:
    asked = {"model": model, "prompt": "The capital of France is", "temperature": 0}
    whole = await result(client.completions.create(**asked, max_tokens=8, n=2, logprobs=1))
    assert [choice.index for choice in whole.choices] == [0, 1]
    stream = await result(client.completions.create(**asked, max_tokens=8, stream=True))
    text = "".join([choice.text async for chunk in each(stream) for choice in chunk.choices])
    assert text == whole.choices[0].text
    assert "Paris" in text


async def test_chat_calls_a_tool_and_uses_what_it_returns(client: Any, model: str) -> None:
    asked = {
        "model": model,
        "temperature": 0,
        "max_completion_tokens": 64,
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": WEATHER}],
    }
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = await result(
        client.chat.completions.create(**asked, messages=messages, tool_choice="required")
    )
    [choice] = answer.choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    messages += [
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "It is raining."},
    ]
    last = await result(
        client.chat.completions.create(**asked, messages=messages, tool_choice="none")
    )
    assert last.choices[0].message.content
    assert last.choices[0].message.tool_calls is None


async def test_chat_streams_a_call_that_the_client_can_put_together(
    client: Any, model: str
) -> None:
    manager = client.chat.completions.stream(
        model=model,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        temperature=0,
        tools=[{"type": "function", "function": WEATHER}],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
    )
    async with entered(manager) as stream:
        kinds = [event.type async for event in each(stream)]
        final = await result(stream.get_final_completion())
    assert "tool_calls.function.arguments.done" in kinds
    [call] = final.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


async def test_chat_parses_into_a_model(client: Any, model: str) -> None:
    answer = await result(
        client.chat.completions.parse(
            model=model,
            messages=[{"role": "user", "content": "Describe Paris as JSON."}],
            response_format=City,
            temperature=0,
            max_completion_tokens=60,
        )
    )
    assert isinstance(answer.choices[0].message.parsed, City)


async def test_responses_whole_streamed_and_retrieved(client: Any, model: str) -> None:
    asked = {"model": model, "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    whole = await result(client.responses.create(**asked))
    assert "Paris" in whole.output_text
    stream = await result(client.responses.create(**asked, stream=True))
    events = [event.to_dict() async for event in each(stream)]
    last = check_events(events)
    assert last["output"][0]["content"] == whole.to_dict()["output"][0]["content"]
    kept = await result(client.responses.retrieve(last["id"]))
    assert check_response(kept.to_dict()) == last
    items = await result(client.responses.input_items.list(last["id"]))
    assert items.data[0].content[0].text == QUESTION
    await result(client.responses.delete(last["id"]))


async def test_responses_go_on_from_an_earlier_one(client: Any, model: str) -> None:
    first = await result(
        client.responses.create(model=model, input=QUESTION, temperature=0, max_output_tokens=24)
    )
    second = await result(
        client.responses.create(
            model=model,
            input="And of Italy?",
            previous_response_id=first.id,
            temperature=0,
            max_output_tokens=16,
        )
    )
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens


async def test_responses_call_a_tool_and_use_what_it_returns(client: Any, model: str) -> None:
    tool = {"type": "function", "strict": True, **WEATHER}
    first = await result(
        client.responses.create(
            model=model,
            input="What is the weather in Paris?",
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            max_output_tokens=64,
        )
    )
    [call] = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "It is raining."}
    second = await result(
        client.responses.create(
            model=model,
            input=[output],
            tools=[tool],
            tool_choice="none",
            previous_response_id=first.id,
            temperature=0,
            max_output_tokens=20,
        )
    )
    assert second.output_text


async def test_responses_parse_into_a_model(client: Any, model: str) -> None:
    answer = await result(
        client.responses.parse(
            model=model,
            input="Describe Paris as JSON.",
            text_format=City,
            temperature=0,
            max_output_tokens=60,
        )
    )
    assert isinstance(answer.output_parsed, City)


async def test_a_background_response_is_followed_from_a_cursor(client: Any, model: str) -> None:
    asked = {"model": model, "input": "Tell me a story.", "temperature": 0}
    stream = await result(
        client.responses.create(**asked, background=True, stream=True, max_output_tokens=40)
    )
    seen: list[dict[str, Any]] = []
    async for event in each(stream):
        seen.append(event.to_dict())
        if event.type == "response.output_text.delta":
            break
    await result(stream.close())
    response_id, cursor = seen[0]["response"]["id"], seen[-1]["sequence_number"]
    rest = await result(client.responses.retrieve(response_id, stream=True, starting_after=cursor))
    seen += [event.to_dict() async for event in each(rest)]
    assert check_events(seen)["usage"]["output_tokens"] == 40


async def test_a_background_response_is_cancelled(client: Any, model: str) -> None:
    begun = await result(
        client.responses.create(
            model=model, input="Tell me a long story.", background=True, max_output_tokens=2000
        )
    )
    assert begun.status in ("queued", "in_progress")
    cancelled = await result(client.responses.cancel(begun.id))
    again = await result(client.responses.cancel(begun.id))
    assert (cancelled.status, again.status) == ("cancelled", "cancelled")
