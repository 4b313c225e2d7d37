"""The Responses socket with the real model, over a line that drops, with OpenAI's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.app.response_events import check_events
from tests.app.responses_conversation import Frame, text_of
from tests.e2e.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


@pytest.fixture
async def client(proxy: TcpProxy) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="local") as client:
        yield client


async def until_end(connection: Any) -> list[Frame]:
    frames: list[Frame] = []
    while not frames or frames[-1]["type"] not in ENDS:
        event = await connection.recv()
        frames.append(event.model_dump(by_alias=True, exclude_unset=True))
    return frames


async def test_a_dropped_line_loses_and_repeats_nothing(
    client: openai.AsyncOpenAI, proxy: TcpProxy
) -> None:
    frames: list[Frame] = []
    num_reconnects = 0

    def on_reconnecting(_: Any) -> Any:
        nonlocal num_reconnects
        num_reconnects += 1
        cursor = str(frames[-1]["sequence_number"])
        return {"extra_query": {"resume": frames[0]["response"]["id"], "starting_after": cursor}}

    async with client.responses.connect(
        on_reconnecting=on_reconnecting, initial_delay=0.01
    ) as connection:
        await connection.response.create(
            input="Tell me a story.", max_output_tokens=60, temperature=0, store=False
        )
        async for event in connection:
            frames.append(event.model_dump(by_alias=True, exclude_unset=True))
            if event.type in ENDS:
                break
            if len(frames) == 10:
                proxy.cut()
                proxy.mend()
        assert num_reconnects == 1
        response = check_events(frames)
        # The whole of it once more, from a socket that has never been cut.
        await connection.send(
            {"type": "tokenwire.response.resume", "response_id": response["id"]}  # type: ignore[arg-type]
        )
        assert await until_end(connection) == frames
    assert response["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 60


async def test_a_second_turn_does_not_pay_for_the_first_again(
    client: openai.AsyncOpenAI,
) -> None:
    async with client.responses.connect() as connection:
        question = "What is the capital of France? Answer with the name and nothing else. " * 3
        await connection.response.create(input=question, temperature=0, store=False)
        first = check_events(await until_end(connection))
        assert "Paris" in first["output"][0]["content"][0]["text"]
        await connection.response.create(
            input="And of Italy?",
            temperature=0,
            store=False,
            max_output_tokens=30,
            previous_response_id=first["id"],
        )
        frames = await until_end(connection)
        second = check_events(frames)
    assert text_of(frames)
    usage = second["usage"]
    assert usage["input_tokens"] > first["usage"]["total_tokens"] - 5
    assert usage["input_tokens_details"]["cached_tokens"] > first["usage"]["input_tokens"] / 2
