"""The main job, with the real model, over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.e2e.client import receive, receive_stream, receive_until, send, text_of
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]

QUESTION = {"role": "user", "content": "What is the capital of France?"}
PROMPT = "The capital of France is"


@pytest.fixture
async def rest(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        yield client


async def test_chat_answer_names_paris_and_arrives_in_deltas(server: ServerProcess) -> None:
    async with connect(server.ws_url) as socket:
        # The model's own answer is eight tokens long; it may not end before twenty.
        await send(
            socket,
            type="generate",
            messages=[QUESTION],
            temperature=0,
            min_tokens=20,
            max_tokens=60,
        )
        frames = await receive_stream(socket)
    deltas = [frame for frame in frames if frame["type"] == "delta"]
    done = frames[-1]
    assert "Paris" in text_of(frames)
    assert len(deltas) >= 10
    assert len(deltas) > done["usage"]["completion_tokens"] / 2  # not saved up: most come alone
    first, last = deltas[0], deltas[-1]
    assert last["seq"] - first["seq"] >= 10
    assert done["finish_reason"] in ("stop", "length")


async def test_greedy_text_is_the_same_over_every_transport(
    server: ServerProcess, rest: httpx.AsyncClient
) -> None:
    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    async with connect(server.ws_url) as socket:
        await send(socket, type="generate", **body)
        streamed = text_of(await receive_stream(socket))
    whole = (await rest.post("/v1/completions", json=body)).json()["choices"][0]["text"]
    response = await rest.post("/v1/completions", json={**body, "stream": True})
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in response.text.splitlines()
        if line.startswith("data: {")
    ]
    events = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert streamed == whole == events
    assert streamed


async def test_resumes_on_a_new_socket_without_gap_or_overlap(server: ServerProcess) -> None:
    async with connect(server.ws_url) as socket:
        await send(
            socket, type="generate", prompt=PROMPT, max_tokens=40, temperature=0, ignore_eos=True
        )
        frames = await receive_until(socket, "started")
        frames += [await receive(socket) for _ in range(5)]
    handle, cursor = frames[0]["generation_id"], frames[-1]["seq"]
    async with connect(server.ws_url) as socket:
        await send(socket, type="resume", generation_id=handle, after=cursor)
        rest_of_it = await receive_stream(socket)
        await send(socket, type="resume", generation_id=handle, after=-1)
        whole = await receive_stream(socket)
    assert text_of(frames) + text_of(rest_of_it) == text_of(whole)
    assert rest_of_it[-1]["usage"]["completion_tokens"] == 40


async def test_server_answers_health_and_tells_a_second_client_its_place(
    server: ServerProcess, rest: httpx.AsyncClient
) -> None:
    async with connect(server.ws_url) as first, connect(server.ws_url) as second:
        await send(first, type="generate", id="long", prompt=PROMPT, ignore_eos=True, max_tokens=99)
        await receive_until(first, "delta")
        await send(second, type="generate", prompt=PROMPT, max_tokens=4, ignore_eos=True)
        frames = await receive_until(second, "queued")
        assert frames[-1]["position"] == 0
        health = (await rest.get("/health")).json()
        assert (health["status"], health["active"], health["queued"]) == ("ok", 1, 1)
        await send(first, type="cancel", id="long")
        assert (await receive_stream(first))[-1]["finish_reason"] == "cancelled"
        assert (await receive_stream(second))[-1]["finish_reason"] == "length"


async def test_two_streams_on_one_socket_and_one_is_cancelled(server: ServerProcess) -> None:
    async with connect(server.ws_url) as socket:
        for name in ("a", "b"):
            await send(
                socket, type="generate", id=name, prompt=PROMPT, max_tokens=30, ignore_eos=True
            )
        await receive_until(socket, "delta")
        await send(socket, type="cancel", id="a")
        endings: dict[str, str] = {}
        while len(endings) < 2:
            frame = (await receive_until(socket, "done", "error"))[-1]
            endings[frame["id"]] = frame["finish_reason"]
    assert endings == {"a": "cancelled", "b": "length"}


@pytest.fixture(scope="module")
def crowd_server() -> Iterator[ServerProcess]:
    """The real model for many at once, who get what they would get alone and leave at any time."""
    grace = ("--disconnect-grace-s", "0", "--max-message-bytes", "65536")
    process = ServerProcess("--batch-invariant", *grace)
    yield process
    assert process.stop() == 0, process.log


@pytest.mark.pain(3)
async def test_clients_that_vanish_leave_nothing_behind(crowd_server: ServerProcess) -> None:
    server = crowd_server
    randomness = random.Random(2)

    async def vanish() -> None:
        num_frames = randomness.randrange(4)
        async with connect(server.ws_url) as socket:
            await send(socket, type="generate", prompt=PROMPT, max_tokens=200, ignore_eos=True)
            for _ in range(num_frames):
                await receive(socket)
            socket.transport.abort()

    for _ in range(10):
        await asyncio.gather(*(vanish() for _ in range(10)))
    async with connect(server.ws_url) as socket:
        await send(socket, type="generate", prompt=PROMPT, max_tokens=4, temperature=0)
        assert (await receive_stream(socket))[-1]["usage"]["completion_tokens"] == 4
    async with httpx.AsyncClient(base_url=server.url) as client:
        health = (await client.get("/health")).json()
    assert (health["active"], health["queued"]) == (0, 0)
    assert "Traceback" not in server.log


@pytest.mark.pain(14)
async def test_a_crowd_gets_what_each_would_get_alone(crowd_server: ServerProcess) -> None:
    server = crowd_server
    prompts = [f"{word} is" for word in ("Paris", "Water", "The sun", "A dog", "Music", "Time")]

    async def ask(prompt: str) -> tuple[str, int]:
        async with connect(server.ws_url) as socket:
            await send(socket, type="generate", prompt=prompt, max_tokens=16, temperature=0)
            frames = await receive_stream(socket)
        return text_of(frames), frames[-1]["usage"]["completion_tokens"]

    alone = [await ask(prompt) for prompt in prompts]
    crowd = await asyncio.gather(*(ask(prompt) for prompt in prompts))
    assert crowd == alone
    assert all(text for text, _ in crowd)


async def test_an_answer_follows_its_schema(rest: httpx.AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    body = {
        "prompt": "The capital of France as JSON: ",
        "max_tokens": 60,
        "response_format": response_format,
    }
    [choice] = (await rest.post("/v1/completions", json=body)).json()["choices"]
    assert choice["finish_reason"] == "stop"
    answer = json.loads(choice["text"])
    assert answer["city"] in ("Paris", "Rome")
    assert isinstance(answer["big"], bool)
