"""`WS /v1/responses`, called by OpenAI's own clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import agents
import openai
import pytest
from agents.models.openai_responses import OpenAIResponsesWSModel
from openai.types.responses import ResponseSteerFailedEvent
from openai.types.responses.responses_server_event import ResponseWsError

from streaming.backends.scripted import Gate, repeat_prompt, say, scripted_backend
from tests.app.response_events import check_events
from tests.app.responses.logs import call
from tests.app.responses_conversation import Frame, assert_valid_responses, endings, text_of
from tests.app.serving import until
from tests.app.sockets import StreamServer, stream_server
from tests.e2e.tcp_proxy import TcpProxy

pytestmark = pytest.mark.slow

STORY = "Es war einmal ein kleiner Bär 🐻, der hieß 熊. " * 4
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


def dump(event: Any) -> Frame:
    frame: Frame = event.model_dump(by_alias=True, exclude_unset=True)
    return frame


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="local") as client:
        yield client


async def until_end(connection: Any, *, count: int = 1) -> list[Frame]:
    frames: list[Frame] = []
    while count:
        frames.append(dump(await connection.recv()))
        count -= frames[-1]["type"] in ENDS
    return frames


@contextmanager
def proxy_of(server: StreamServer) -> Iterator[TcpProxy]:
    proxy = TcpProxy(server.http_url)
    try:
        yield proxy
    finally:
        proxy.close()


def test_the_sync_client_has_a_conversation(live_server: Callable[..., str]) -> None:
    url = live_server(scripted_backend(repeat_prompt))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="local") as client:
        previous: dict[str, Any] = {}
        texts = []
        with client.responses.connect() as connection:
            for text in ("one", "two", "three"):
                connection.response.create(model="scripted", store=False, input=text, **previous)
                frames = []
                for event in connection:
                    frames.append(dump(event))
                    if event.type in ENDS:
                        break
                response = check_events(frames)
                texts.append(text_of(frames))
                previous = {"previous_response_id": response["id"]}
    assert texts[1] == f"user: one\nassistant: {texts[0]}\nuser: two\nassistant: "
    assert texts[2] == f"{texts[1]}{texts[1]}\nuser: three\nassistant: "


async def test_the_async_client_uses_two_streams_at_once() -> None:
    gate = Gate()
    backend = scripted_backend(repeat_prompt, gate=gate)
    async with (
        stream_server(backend, gate=gate) as server,
        client_of(server.http_url) as client,
        client.responses.connect() as connection,
    ):
        for stream_id in ("one", "two"):
            await connection.response.create(input=stream_id, store=False, stream_id=stream_id)
        frames = [dump(await connection.recv()) for _ in range(4)]
        assert {frame["stream_id"] for frame in frames} == {"one", "two"}
        gate.open()
        frames += await until_end(connection, count=2)
        for stream_id in ("one", "two"):
            [response_id] = {
                frame["response"]["id"]
                for frame in frames
                if frame["stream_id"] == stream_id and "response" in frame
            }
            await connection.response.create(
                previous_response_id=response_id, input="more", store=False, stream_id=stream_id
            )
        frames += await until_end(connection, count=2)
    for stream_id in ("one", "two"):
        assert endings(frames, stream_id) == ["completed", "completed"]
        first = f"user: {stream_id}\nassistant: "
        assert text_of(frames, stream_id) == f"{first}{first}{first}\nuser: more\nassistant: "
    assert_valid_responses(frames)


async def test_errors_and_steers_have_types_that_the_client_knows() -> None:
    async with (
        stream_server(scripted_backend(say("hello"))) as server,
        client_of(server.http_url) as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(previous_response_id="resp_x", stream_id="a")
        error = await connection.recv()
        assert isinstance(error, ResponseWsError)
        assert (error.status, error.stream_id) == (400, "a")
        assert error.error.code == "previous_response_not_found"
        await connection.response.steer(previous_response_id="resp_x", input="faster")
        steered = await connection.recv()
        assert isinstance(steered, ResponseSteerFailedEvent)
        assert (steered.error.code, steered.steer.input) == ("steering_not_supported", "faster")


class ResumingReader:
    """A client that remembers its cursor, for the reconnect hook."""

    def __init__(self) -> None:
        self.response_id = ""
        self.cursor = -1
        self.frames: list[Frame] = []
        self.num_reconnects = 0

    def take(self, event: Any) -> str:
        self.frames.append(dump(event))
        self.cursor = event.sequence_number
        if event.type == "response.created":
            self.response_id = event.response.id
        kind: str = event.type
        return kind

    def on_reconnecting(self, _: Any) -> Any:
        self.num_reconnects += 1
        query = {"resume": self.response_id, "starting_after": str(self.cursor)}
        return {"extra_query": query}


async def test_a_lost_connection_loses_and_repeats_no_event() -> None:
    gate = Gate()
    backend = scripted_backend(say(STORY, "and then"), gate=gate)
    reader = ResumingReader()
    async with (
        stream_server(backend, gate=gate) as server,
        client_of(server.http_url) as direct,
    ):
        with proxy_of(server) as proxy:
            client = direct.copy(base_url=f"{proxy.url}/v1")
            async with client.responses.connect(
                on_reconnecting=reader.on_reconnecting, initial_delay=0.01
            ) as connection:
                await connection.response.create(input="tell", store=False)
                gate.allow(20)
                num_cuts = 0
                async for event in connection:
                    kind = reader.take(event)
                    if kind in ENDS:
                        break
                    if reader.num_reconnects == 3:
                        gate.open()
                    elif kind.endswith("text.delta") and num_cuts == reader.num_reconnects:
                        proxy.cut()
                        proxy.mend()
                        num_cuts += 1
                        gate.allow(20)
                assert text_of(reader.frames) == STORY
                check_events(reader.frames)
                # The conversation continues on the new connection, although it is not stored.
                await connection.response.create(
                    input="go on", store=False, previous_response_id=reader.response_id
                )
                frames = await until_end(connection)
                assert text_of(frames) == "and then"
    assert reader.num_reconnects == 3


async def test_every_stream_is_resumed_after_a_lost_connection() -> None:
    gate = Gate()
    backend = scripted_backend(repeat_prompt, gate=gate)
    readers = {"one": ResumingReader(), "two": ResumingReader()}

    def on_reconnecting(_: Any) -> Any:
        query = {
            "resume": [reader.response_id for reader in readers.values()],
            "starting_after": [str(reader.cursor) for reader in readers.values()],
            "stream_id": list(readers),
        }
        return {"extra_query": query}

    async with (
        stream_server(backend, gate=gate) as server,
        client_of(server.http_url) as direct,
    ):
        with proxy_of(server) as proxy:
            client = direct.copy(base_url=f"{proxy.url}/v1")
            num_ended = 0
            async with client.responses.connect(
                on_reconnecting=on_reconnecting, initial_delay=0.01
            ) as connection:
                for stream_id in readers:
                    await connection.response.create(
                        input=stream_id, store=False, stream_id=stream_id
                    )
                async for event in connection:
                    kind = readers[event.stream_id or ""].take(event)
                    num_ended += kind in ENDS
                    if num_ended == 2:
                        break
                    cursors = [reader.cursor for reader in readers.values()]
                    if cursors == [1, 1]:
                        proxy.cut()
                        proxy.mend()
                        gate.open()
    for stream_id, reader in readers.items():
        assert text_of(reader.frames, stream_id) == f"user: {stream_id}\nassistant: "
        assert_valid_responses(reader.frames)


async def test_the_client_replaces_an_expired_connection_by_itself() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    reader = ResumingReader()
    kinds: list[str] = []
    async with (
        stream_server(backend, gate=gate, max_connection_s=1.0) as server,
        client_of(server.http_url) as client,
        client.responses.connect(
            on_reconnecting=reader.on_reconnecting,
            initial_delay=0.01,
            extra_query={"tokenwire_events": "true"},
        ) as connection,
    ):
        await connection.response.create(input="hi", store=False)
        async for event in connection:
            kind: str = event.type
            kinds.append(kind)
            if kind == "tokenwire:connection.expiring":
                gate.open()
            elif kind != "error":
                reader.take(event)
            elif reader.num_reconnects:
                break
    # It ends within its grace period, so there is nothing to resume.
    check_events(reader.frames)
    assert kinds[-2:] == ["error", "error"]
    assert "tokenwire:connection.expiring" in kinds
    assert text_of(reader.frames) == "hello"


@agents.function_tool
def get_weather(city: str) -> str:
    """Return the weather in a city."""
    return f"rain in {city}"


async def test_an_agent_calls_a_tool_and_has_a_second_turn() -> None:
    answers = say(call("get_weather", '{"city": "Rome"}'), "It rains.", "Take an umbrella.")
    async with (
        stream_server(scripted_backend(answers)) as server,
        client_of(server.http_url) as client,
    ):
        model = OpenAIResponsesWSModel("scripted", openai_client=client)
        agent = agents.Agent(name="forecaster", model=model, tools=[get_weather])
        config = agents.RunConfig(tracing_disabled=True)
        first = await agents.Runner.run(agent, "How is Rome?", run_config=config)
        assert first.final_output == "It rains."
        outputs = [item.output for item in first.new_items if hasattr(item, "output")]
        assert outputs == ["rain in Rome"]
        second = await agents.Runner.run(
            agent,
            "What do I need?",
            run_config=config,
            previous_response_id=first.last_response_id,
        )
        assert second.final_output == "Take an umbrella."
        assert len(server.app.state.services.connections) == 1
        await model.close()
        await until(lambda: len(server.app.state.services.connections) == 0)


async def test_an_agent_streams() -> None:
    async with (
        stream_server(scripted_backend(say("hello"))) as server,
        client_of(server.http_url) as client,
    ):
        model = OpenAIResponsesWSModel("scripted", openai_client=client)
        agent = agents.Agent(name="greeter", model=model)
        run = agents.Runner.run_streamed(
            agent, "hi", run_config=agents.RunConfig(tracing_disabled=True)
        )
        kinds = [
            event.data.type
            async for event in run.stream_events()
            if event.type == "raw_response_event"
        ]
        assert kinds.count("response.output_text.delta") == 5
        assert run.final_output == "hello"
        await model.close()


async def test_an_agent_gets_the_error_of_a_refused_request() -> None:
    async with (
        stream_server(scripted_backend()) as server,
        client_of(server.http_url) as client,
    ):
        model = OpenAIResponsesWSModel("gpt", openai_client=client)
        agent = agents.Agent(name="stranger", model=model)
        config = agents.RunConfig(tracing_disabled=True)
        with pytest.raises(RuntimeError, match="model_not_found"):
            await agents.Runner.run(agent, "hi", run_config=config)
        await model.close()
        await asyncio.wait_for(server.until_left(), 5)
