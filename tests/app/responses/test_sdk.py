"""`/v1/responses`, called by OpenAI's own client over a real socket."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall

from streaming import Backend
from streaming.backends.scripted import ScriptMatcher, say, scripted_backend
from streaming.output_constraint import GrammarMatcher, OutputConstraint
from tests.app.response_events import check_events, check_response
from tests.app.responses.logs import call

pytestmark = pytest.mark.slow

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}

LiveServer = Callable[..., str]


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


@pytest.fixture
def connect(live_server: LiveServer) -> Iterator[Callable[..., openai.OpenAI]]:
    clients: list[openai.OpenAI] = []

    def connect(backend: Backend, **settings: Any) -> openai.OpenAI:
        url = live_server(backend, **settings)
        clients.append(openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0))
        return clients[-1]

    yield connect
    for each in clients:
        each.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0) as client:
        yield client


def dump(model: pydantic.BaseModel) -> dict[str, Any]:
    return model.model_dump(by_alias=True, exclude_unset=True)


class AnyGrammar:
    """Accepts every text under every grammar."""

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        return [ScriptMatcher() for _ in range(count)]


def trusted(text: str) -> Backend:
    return replace(scripted_backend(say(text)), grammars=AnyGrammar())


def test_create_and_retrieve(connect: Callable[..., openai.OpenAI]):
    client = connect(scripted_backend(say("hello")))
    response = client.responses.create(
        model="scripted", input="hi", instructions="be nice", metadata={"a": "b"}, temperature=0
    )
    check_response(dump(response))
    assert (response.output_text, response.status, response.temperature) == (
        "hello",
        "completed",
        0,
    )
    assert response.usage is not None
    assert response.usage.output_tokens == 6
    assert client.responses.retrieve(response.id) == response
    items = client.responses.input_items.list(response.id, order="asc", limit=1)
    assert [dump(item)["content"][0]["text"] for item in items] == ["hi"]
    assert client.responses.input_tokens.count(model="scripted", input="hi").input_tokens == 20
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.retrieve(response.id)
    assert missing.value.code == "response_not_found"


def test_a_conversation(connect: Callable[..., openai.OpenAI]):
    client = connect(scripted_backend(say("one", "two")))
    first = client.responses.create(input="a", model="scripted")
    second = client.responses.create(
        input="b", model="scripted", previous_response_id=first.id, store=False
    )
    assert (second.output_text, second.previous_response_id) == ("two", first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(input="c", model="scripted", previous_response_id=second.id)
    assert refused.value.code == "previous_response_not_found"
    assert refused.value.param == "previous_response_id"


def test_a_stream_and_its_replay_from_every_event(connect: Callable[..., openai.OpenAI]):
    client = connect(scripted_backend(say("hello")))
    events = list(client.responses.create(input="hi", model="scripted", stream=True))
    shown = [dump(event) for event in events]
    response_id = check_events(shown)["id"]
    for after in range(len(events)):
        rest = client.responses.retrieve(response_id, stream=True, starting_after=after)
        assert list(rest) == events[after + 1 :]
    with client.responses.stream(input="hi", model="scripted") as streamed:
        for _ in streamed:
            pass
        assert streamed.get_final_response().output_text == "hello"
    with client.responses.stream(response_id=response_id, starting_after=5) as resumed:
        deltas = [event.delta for event in resumed if event.type == "response.output_text.delta"]
    assert deltas == list("llo")[-len(deltas) :]


def test_background_cancel(connect: Callable[..., openai.OpenAI]):
    backend = scripted_backend(lambda _: itertools.repeat(ord("x")), max_model_len=10**7)
    client = connect(backend)
    response = client.responses.create(input="hi", model="scripted", background=True)
    assert response.status == "queued"
    stream = client.responses.retrieve(response.id, stream=True)
    events = [next(stream) for _ in range(6)]
    cancelled = client.responses.cancel(response.id)
    assert (cancelled.status, cancelled.background) == ("cancelled", True)
    assert client.responses.cancel(response.id) == cancelled
    assert check_events([dump(event) for event in (*events, *stream)]) == dump(cancelled)


def test_compact(connect: Callable[..., openai.OpenAI]):
    client = connect(scripted_backend(say("They said hi.")))
    compacted = client.responses.compact(input="hi", model="scripted")
    assert compacted.output[-1].type == "compaction"
    # The client warns: its types have no user message in an output.
    output = [item.to_dict(warnings=False) for item in compacted.output]
    conversation: list[Any] = [*output, {"role": "user", "content": "and?"}]
    assert client.responses.create(input=conversation, model="scripted").output_text


def test_a_tool_round_trip(connect: Callable[..., openai.OpenAI]):
    script = call("get_weather", '{"city": "Rome"}')
    client = connect(scripted_backend(say(script, "It is warm.")))
    question: list[Any] = [{"role": "user", "content": "How warm is it in Rome?"}]
    first = client.responses.create(input=question, model="scripted", tools=[TOOL])
    [called] = first.output
    assert isinstance(called, ResponseFunctionToolCall)
    assert (called.name, called.arguments) == ("get_weather", '{"city": "Rome"}')
    result = {"type": "function_call_output", "call_id": called.call_id, "output": "21"}
    conversation: list[Any] = [*question, called, result]
    second = client.responses.create(input=conversation, model="scripted", tools=[TOOL])
    assert second.output_text == "It is warm."


def test_answers_are_parsed(connect: Callable[..., openai.OpenAI]):
    client = connect(trusted('{"city": "Rome", "degrees": 21}'))
    parsed = client.responses.parse(input="hi", model="scripted", text_format=Weather)
    assert parsed.output_parsed == Weather(city="Rome", degrees=21)
    assert parsed.text is not None
    assert parsed.text.format is not None
    assert parsed.text.format.type == "json_schema"


def test_arguments_are_parsed(connect: Callable[..., openai.OpenAI]):
    client = connect(scripted_backend(say(call("Weather", '{"city": "Rome", "degrees": 21}'))))
    tool = openai.pydantic_function_tool(Weather)["function"]
    called = client.responses.parse(
        input="hi",
        model="scripted",
        tools=[{"type": "function", **tool}],  # type: ignore[typeddict-item]
    )
    assert called.output[0].type == "function_call"
    assert called.output[0].parsed_arguments == {"city": "Rome", "degrees": 21}


async def test_async(live_server: LiveServer):
    url = live_server(scripted_backend(say("hello")))
    async with connected(url) as client:
        response = await client.responses.create(input="hi", model="scripted")
        assert response.output_text == "hello"
        stream = await client.responses.create(input="hi", model="scripted", stream=True)
        events = [event async for event in stream]
        response_id = check_events([dump(event) for event in events])["id"]
        rest = await client.responses.retrieve(response_id, stream=True, starting_after=3)
        assert [event async for event in rest] == events[4:]
        found = await client.responses.retrieve(response_id)
        assert isinstance(found, Response)
        items = client.responses.input_items.list(response_id)
        assert [item.type async for item in items] == ["message"]
        assert await client.responses.cancel(response_id) == found
        await client.responses.delete(response_id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response_id, stream=True)
