"""What a real server has answered is there after it was killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NUM_CLIENTS = 8
NUM_ANSWERED = 200
"""So many responses are answered before the server is killed."""


class Answered:
    """Ids of the responses whose end a client has seen; kills the server after so many."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.ids: list[str] = []

    def add(self, response: dict[str, Any]) -> None:
        assert response["store"] is True
        self.ids.append(response["id"])
        if len(self.ids) == NUM_ANSWERED:
            self._server.signal(signal.SIGKILL)


async def ask_whole(client: httpx.AsyncClient, answered: Answered) -> None:
    while True:
        answer = await client.post("/v1/responses", json={"input": "hi"})
        answered.add(answer.json())


async def ask_stream(client: httpx.AsyncClient, answered: Answered) -> None:
    while True:
        body = {"input": "hi", "stream": True}
        async with client.stream("POST", "/v1/responses", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if event["type"] == "response.completed":
                        answered.add(event["response"])


async def ask_background(client: httpx.AsyncClient, answered: Answered) -> None:
    while True:
        body = {"input": "hi", "background": True}
        response = (await client.post("/v1/responses", json=body)).json()
        while response["status"] != "completed":
            response = (await client.get(f"/v1/responses/{response['id']}")).json()
        answered.add(response)


async def ask_socket(url: str, answered: Answered) -> None:
    async with connect(f"{url.replace('http', 'ws', 1)}/v1/responses", proxy=None) as socket:
        while True:
            await socket.send(json.dumps({"type": "response.create", "input": "hi"}))
            async for frame in socket:
                event = json.loads(frame)
                if event["type"] == "response.completed":
                    answered.add(event["response"])
                    break


async def ask_until_killed(server: ServerProcess) -> list[str]:
    answered = Answered(server)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as client:
        asking = [
            *(ask(client, answered) for ask in (ask_whole, ask_stream, ask_background)),
            ask_socket(server.url, answered),
        ]
        asking += [ask_whole(client, answered) for _ in range(NUM_CLIENTS - len(asking))]
        ends = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(end, httpx.TransportError | ConnectionClosed) for end in ends), ends
    return answered.ids


def test_every_response_that_was_answered_outlives_a_killed_server(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    flags = ("--backend", "scripted", "--data-dir", str(tmp_path))
    server = start_server(*flags)
    answered = asyncio.run(ask_until_killed(server))
    assert server.wait() == -signal.SIGKILL
    assert len(answered) >= NUM_ANSWERED
    again = start_server(*flags)
    with httpx.Client(base_url=again.url, trust_env=False) as client:
        lost = [
            response_id
            for response_id in answered
            if client.get(f"/v1/responses/{response_id}").status_code != 200
        ]
    assert lost == []
