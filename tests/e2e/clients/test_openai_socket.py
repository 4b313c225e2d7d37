"""OpenAI's own Python client, plain and asynchronous, over `WS /v1/responses`."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.app.response_events import TERMINAL, check_events
from tests.e2e.clients.either import each, entered, result
from tests.e2e.server_process import ServerProcess
from tests.e2e.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]

Event = dict[str, Any]


@pytest.fixture(params=[OpenAI, AsyncOpenAI], ids=["sync", "async"])
def client_type(request: pytest.FixtureRequest) -> Any:
    return request.param


async def turn(socket: Any) -> list[Event]:
    """Return the events of one turn, to its end."""
    events: list[Event] = []
    async for event in each(socket):
        events.append(event.to_dict())
        if event.type in (*TERMINAL, "error"):
            break
    return events


async def test_several_turns_on_one_socket(client_type: Any, model_server: ServerProcess) -> None:
    async with (
        entered(client_type(base_url=f"{model_server.url}/v1", api_key="none")) as client,
        entered(client.responses.connect()) as socket,
    ):
        if True:
            asked = {"store": False, "temperature": 0, "max_output_tokens": 16}
            await result(socket.response.create(**asked, input="What is the capital of France?"))
            first = check_events(await turn(socket))
            await result(
                socket.response.create(
                    **asked, input="And of Italy?", previous_response_id=first["id"]
                )
            )
            second = check_events(await turn(socket))
    assert "Paris" in first["output"][0]["content"][0]["text"]
    assert second["previous_response_id"] == first["id"]
    assert second["usage"]["input_tokens"] > first["usage"]["total_tokens"]


async def test_two_lanes_at_once(client_type: Any, model_server: ServerProcess) -> None:
    async with (
        entered(client_type(base_url=f"{model_server.url}/v1", api_key="none")) as client,
        entered(client.responses.connect()) as socket,
    ):
        if True:
            for stream_id in ("one", "two"):
                await result(
                    socket.response.create(
                        stream_id=stream_id,
                        input=f"Count to twenty, {stream_id}.",
                        temperature=0,
                        max_output_tokens=20,
                    )
                )
            streams: dict[str, list[Event]] = {"one": [], "two": []}
            order: list[str] = []
            async for event in each(socket):
                shown = event.to_dict()
                stream_id = shown.pop("stream_id")
                order.append(stream_id)
                streams[stream_id].append(shown)
                if (
                    sum(events[-1]["type"] in TERMINAL for events in streams.values() if events)
                    == 2
                ):
                    break
    for events in streams.values():
        check_events(events)
    assert order != sorted(order), "one stream waited for the other"


async def test_nothing_is_lost_in_a_forced_drop(client_type: Any, model_proxy: TcpProxy) -> None:
    events: list[Event] = []
    attempts: list[int] = []

    def resume(event: Any) -> Any:
        attempts.append(event.attempt)
        model_proxy.mend()
        response_id = events[0]["response"]["id"]
        after = str(events[-1]["sequence_number"])
        return {"extra_query": {"resume": response_id, "starting_after": after}}

    async with entered(client_type(base_url=f"{model_proxy.url}/v1", api_key="none")) as client:
        manager = client.responses.connect(on_reconnecting=resume, initial_delay=0.01)
        async with entered(manager) as socket:
            await result(
                socket.response.create(
                    input="Tell me a story.", store=False, temperature=0, max_output_tokens=60
                )
            )
            async for event in each(socket):
                events.append(event.to_dict())
                if event.type in (*TERMINAL, "error"):
                    break
                if not attempts and event.type == "response.output_text.delta":
                    model_proxy.cut()
            assert attempts == [1]
            last = check_events(events)
            assert last["usage"]["output_tokens"] == 60
            await result(
                socket.response.create(
                    input="Go on.",
                    store=False,
                    previous_response_id=last["id"],
                    max_output_tokens=16,
                )
            )
            assert check_events(await turn(socket))["previous_response_id"] == last["id"]
