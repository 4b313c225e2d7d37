"""`WS /v1/responses` of the real server, with the client of `websockets`."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus
from websockets.extensions.permessage_deflate import PerMessageDeflate

from streaming.backends.scripted import Gate, repeat_prompt, say, scripted_backend
from tests.app.responses_conversation import (
    Frame,
    assert_valid_responses,
    endings,
    text_of,
)
from tests.app.serving import until
from tests.app.sockets import (
    StreamServer,
    receive,
    receive_until_closed,
    send,
    stream_server,
)
from tests.support import entered

PATH = "/v1/responses"
CREATE = {"type": "response.create", "input": "hi"}
STORY = "Es war einmal ein kleiner Bär 🐻, der hieß 熊. " * 4
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
KEYS: dict[str, Any] = {"api_keys": ("first", "second")}


@pytest.fixture
async def parrot() -> AsyncIterator[StreamServer]:
    async with stream_server(scripted_backend(repeat_prompt)) as server:
        yield server


async def create(client: ClientConnection, stream_id: str | None = None, **fields: Any) -> None:
    named = {} if stream_id is None else {"stream_id": stream_id}
    await send(client, **{"type": "response.create", "input": "hi", **named, **fields})


async def until_end(client: ClientConnection, *, count: int = 1) -> list[Frame]:
    """Return all frames up to the given number of endings, on any stream."""
    frames: list[Frame] = []
    while count:
        frames.append(await receive(client))
        count -= frames[-1]["type"] in ENDS
    return frames


async def until_shown(client: ClientConnection, kind: str) -> list[Frame]:
    frames = [await receive(client)]
    while frames[-1]["type"] != kind:
        frames.append(await receive(client))
    return frames


def resuming(*resumes: tuple[str, int]) -> str:
    query = [("resume", each) for each, _ in resumes]
    return f"{PATH}?{urlencode(query + [('starting_after', str(at)) for _, at in resumes])}"


async def refusal_of(server: StreamServer, **options: Any) -> tuple[int, str]:
    """Return the status and error code of a refused handshake."""
    with pytest.raises(InvalidStatus) as caught:
        async with server.connect(PATH, **options):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body or b"")["error"]["code"]


# Turns


async def test_a_conversation(parrot: StreamServer) -> None:
    async with parrot.connect(PATH) as client:
        assert client.subprotocol is None
        await create(client, input=STORY, store=False, instructions="Repeat.")
        frames = await until_end(client)
        response = frames[-1]["response"]
        await create(client, store=False, previous_response_id=response["id"])
        frames += await until_end(client)
    assert_valid_responses(frames)
    first = f"system: Repeat.\nuser: {STORY}\nassistant: "
    second = f"user: {STORY}\nassistant: {first}\nuser: hi\nassistant: "
    assert text_of(frames) == first + second
    assert response["usage"]["input_tokens"] == len(first.encode())
    assert not any("\N{REPLACEMENT CHARACTER}" in text_of([frame]) for frame in frames)


async def test_unstored_responses_end_with_their_connection(parrot: StreamServer) -> None:
    async with parrot.connect(PATH) as client:
        await create(client, store=False)
        response_id = (await until_end(client))[-1]["response"]["id"]
    async with parrot.connect(PATH) as client:
        await create(client, store=False, previous_response_id=response_id)
        assert endings(await until_end(client)) == ["previous_response_not_found"]
    async with httpx.AsyncClient(base_url=parrot.http_url) as rest:
        body = {"input": "hi", "previous_response_id": response_id}
        assert (await rest.post(PATH, json=body)).status_code == 400
        assert (await rest.get(f"{PATH}/{response_id}")).status_code == 404


async def test_both_transports_send_the_same_events(parrot: StreamServer) -> None:
    body: dict[str, Any] = {"input": STORY, "metadata": {"page": "7"}}
    async with httpx.AsyncClient(base_url=parrot.http_url) as rest:
        text = (await rest.post(PATH, json={**body, "stream": True})).text
    streamed = [
        json.loads(line.removeprefix("data: "))
        for line in text.splitlines()
        if line.startswith("data: {")
    ]
    async with parrot.connect(PATH) as client:
        await create(client, **body)
        frames = await until_end(client)

    def without_ids(events: list[Frame]) -> Any:
        volatile = ("id", "item_id", "created_at", "completed_at")
        return json.loads(
            json.dumps(events),
            object_hook=lambda fields: {
                name: value for name, value in fields.items() if name not in volatile
            },
        )

    assert without_ids(frames) == without_ids(streamed)


async def test_the_socket_stays_open_after_every_error(parrot: StreamServer) -> None:
    image = {"type": "input_image", "image_url": "data:,"}
    wrong: list[tuple[Any, str, str | None, int]] = [
        ("{", "invalid_json", None, 400),
        (b"\xff", "invalid_json", None, 400),
        ("[1]", "invalid_request", None, 400),
        ({"type": "response.inject"}, "unknown_type", "type", 400),
        ({**CREATE, "temperature": 3}, "invalid_request", "temperature", 400),
        ({"type": "response.create", "input": [image]}, "unsupported_content", "input[0]", 400),
        ({"type": "response.create"}, "invalid_request", "input", 400),
        ({"type": "response.create", "input": "x" * 5000}, "prompt_too_long", "input", 413),
        (
            {"type": "response.create", "input": "hi", "model": "gpt"},
            "model_not_found",
            "model",
            404,
        ),
        (
            {"type": "response.create", "previous_response_id": "resp_x"},
            "previous_response_not_found",
            "previous_response_id",
            400,
        ),
        (
            {"type": "tokenwire.response.resume", "response_id": "resp_x"},
            "response_not_found",
            "response_id",
            404,
        ),
    ]
    async with parrot.connect(PATH) as client:
        frames: list[Frame] = []
        for message, code, param, status in wrong:
            await client.send(json.dumps(message) if isinstance(message, dict) else message)
            frame = await receive(client)
            error = frame["error"]
            assert (error["code"], error["param"], frame["status"]) == (code, param, status)
            await create(client)
            frames += [frame, *await until_end(client)]
    assert_valid_responses(frames)
    assert endings(frames).count("completed") == len(wrong)


async def test_the_engine_is_full() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate, max_num_seqs=1)
    limits: dict[str, Any] = {"max_waiting_requests": 1}
    async with (
        stream_server(backend, gate=gate, **limits) as server,
        server.connect(PATH) as client,
    ):
        await create(client, "a")
        await entered(gate)
        frames = await until_shown(client, "response.in_progress")
        await create(client, "b")
        frames += await until_shown(client, "response.in_progress")
        await create(client, "c")
        frames += await until_end(client)
        assert frames[-1]["error"]["code"] == "overloaded"
        assert int(frames[-1]["error"]["headers"]["retry-after"]) >= 1
        gate.open()
        frames += await until_end(client, count=2)
    assert_valid_responses(frames)
    assert [endings(frames, stream_id) for stream_id in "abc"] == [
        ["completed"],
        ["completed"],
        ["overloaded"],
    ]


# The handshake


async def test_a_handshake_without_a_key_is_refused() -> None:
    async with stream_server(scripted_backend(), **KEYS) as server:
        assert await refusal_of(server) == (401, "unauthorized")
        wrong = {"authorization": "Bearer third"}
        assert await refusal_of(server, additional_headers=wrong) == (401, "unauthorized")
        right = {"authorization": "Bearer first"}
        evil = {"additional_headers": right, "origin": "http://evil.example"}
        assert await refusal_of(server, **evil) == (403, "forbidden_origin")
        async with server.connect(PATH, additional_headers=right) as client:
            await create(client)
            assert endings(await until_end(client)) == ["completed"]


@pytest.mark.pain(16)
async def test_another_callers_response_cannot_be_resumed() -> None:
    keys = [{"authorization": f"Bearer {key}"} for key in ("first", "second")]
    async with stream_server(scripted_backend(), **KEYS) as server:
        async with server.connect(PATH, additional_headers=keys[0]) as client:
            await create(client)
            response_id = (await until_end(client))[-1]["response"]["id"]
        async with server.connect(
            resuming((response_id, -1)), additional_headers=keys[1]
        ) as client:
            assert endings(await until_end(client)) == ["response_not_found"]
            await create(client, previous_response_id=response_id)
            assert endings(await until_end(client)) == ["previous_response_not_found"]


async def test_both_kinds_of_sockets_share_one_limit() -> None:
    async with (
        stream_server(scripted_backend(), max_connections=2) as server,
        server.connect(),
        server.connect(PATH),
    ):
        assert await refusal_of(server) == (429, "too_many_connections")


async def test_handshakes_are_refused_during_shutdown(parrot: StreamServer) -> None:
    parrot.app.state.services.connections.drain()
    assert await refusal_of(parrot) == (503, "shutting_down")


async def test_plain_http_gets_the_allowed_methods(parrot: StreamServer) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(parrot.http_url + PATH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_compression_is_accepted_on_this_route_only(parrot: StreamServer) -> None:
    async with parrot.connect(PATH) as client:
        assert [type(each) for each in client.protocol.extensions] == [PerMessageDeflate]
        await create(client, input=STORY)
        assert STORY in text_of(await until_end(client))
    async with parrot.connect(PATH, compression=None) as client:
        assert client.protocol.extensions == []
        await create(client, input=STORY)
        assert STORY in text_of(await until_end(client))
    async with parrot.connect("/v1/stream") as client:
        assert client.protocol.extensions == []


async def test_a_frame_that_is_too_big_once_decompressed_is_refused() -> None:
    async with (
        stream_server(scripted_backend(), max_message_bytes=10_000) as server,
        server.connect(PATH) as client,
    ):
        await create(client, input="x" * 20_000)
        await receive_until_closed(client)
        assert client.close_code == 1009


# Drops


async def test_the_handshake_resumes_a_running_response() -> None:
    gate = Gate()
    backend = scripted_backend(say(STORY), gate=gate)
    async with stream_server(backend, gate=gate, disconnect_grace_s=1000) as server:
        async with server.connect(PATH) as client:
            await create(client, store=False)
            gate.allow()
            frames = await until_shown(client, "response.output_text.delta")
        response_id = frames[0]["response"]["id"]
        while frames[-1]["sequence_number"] < 60:
            cursor = frames[-1]["sequence_number"]
            async with server.connect(resuming((response_id, cursor))) as client:
                gate.allow(7)
                frames += await until_shown(client, "response.output_text.delta")
                client.transport.abort()
        gate.open()
        async with server.connect(resuming((response_id, frames[-1]["sequence_number"]))) as client:
            frames += await until_end(client)
            await create(client, store=False, previous_response_id=response_id)
            assert endings(await until_end(client)) == ["completed"]
    assert text_of(frames) == STORY
    assert_valid_responses(frames)


async def test_one_handshake_resumes_several_responses(parrot: StreamServer) -> None:
    async with parrot.connect(PATH) as client:
        ids = []
        for text in ("one", "two"):
            await create(client, input=text)
            ids.append((await until_end(client))[-1]["response"]["id"])
    async with parrot.connect(resuming((ids[1], 2), (ids[0], -1), ("resp_x", 4))) as client:
        frames = await until_end(client, count=3)
    assert endings(frames) == ["completed", "completed", "response_not_found"]
    assert [frame["response"]["id"] for frame in frames if "completed" in frame["type"]] == ids[
        ::-1
    ]


async def test_a_response_whose_log_is_gone_can_only_be_retrieved() -> None:
    async with (
        stream_server(scripted_backend(say("hello")), retention_s=0) as server,
        server.connect(PATH) as client,
    ):
        await create(client)
        response_id = (await until_end(client))[-1]["response"]["id"]
        registry = server.app.state.services.responses.registry.live
        await until(lambda: registry.num_open == 0)
        await send(client, type="tokenwire.response.resume", response_id=response_id)
        [error] = await until_end(client)
        assert (error["status"], error["error"]["code"]) == (400, "stream_expired")
        await create(client, previous_response_id=response_id)
        assert endings(await until_end(client)) == ["completed"]


async def test_a_response_is_cancelled_after_its_grace_period() -> None:
    gate = Gate()
    backend = scripted_backend(say(STORY), gate=gate)
    async with stream_server(backend, gate=gate, disconnect_grace_s=0.01) as server:
        async with server.connect(PATH) as client:
            await create(client)
            gate.allow()
            frames = await until_shown(client, "response.output_text.delta")
            client.transport.abort()
        await server.until_left()
        await until(lambda: not server.engine._subscribers.in_grace)
        gate.allow(2)
        await server.until_idle()
        async with server.connect(resuming((frames[0]["response"]["id"], -1))) as client:
            frames = await until_end(client)
        assert frames[-1]["response"]["status"] == "cancelled"
        assert frames[-1]["response"]["usage"]["output_tokens"] <= 3
        assert_valid_responses(frames)


@pytest.mark.pain(3)
@pytest.mark.slow
async def test_a_hundred_random_kills_leave_nothing() -> None:
    dice = random.Random(21)
    backend = scripted_backend(lambda _: iter(lambda: 97, None), max_num_seqs=4)
    limits: dict[str, Any] = {
        "disconnect_grace_s": 0,
        "max_connections": 10,
        "max_waiting_requests": 20,
        "store_responses": False,
    }

    async def be_killed(server: StreamServer) -> None:
        async with server.connect(PATH, max_queue=None) as client:
            for _ in range(dice.randint(0, 4)):
                stream_id = dice.choice((None, "a", "b"))
                await create(client, stream_id, max_output_tokens=dice.choice((3, 100)))
            if dice.random() < 0.5:
                await send(client, type="response.cancel", stream_id=dice.choice((None, "a")))
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    for _ in range(dice.choice((0, 1, 2, 5, 30))):
                        await client.recv()
            client.transport.abort()

    async with stream_server(backend, **limits) as server:
        for _ in range(20):
            await asyncio.gather(*(be_killed(server) for _ in range(5)))
        await server.until_left()
        await server.until_idle()
        assert not server.engine._subscribers._counts
        await until(lambda: server.app.state.services.responses.registry.live.num_open == 0)
        async with server.connect(PATH) as client:
            await create(client, max_output_tokens=5)
            assert text_of(await until_end(client)) == "aaaaa"


@pytest.mark.pain(9)
@pytest.mark.slow
async def test_a_client_that_never_reads_is_closed_and_does_not_delay_others() -> None:
    backend = scripted_backend(lambda _: [97] * 4_000, max_model_len=5_000)
    limits: dict[str, Any] = {"stall_timeout_s": 0.2, "disconnect_grace_s": 1000}
    async with stream_server(backend, send_buffer_bytes=4096, **limits) as server:
        options: dict[str, Any] = {"max_size": None, "ping_interval": None, "compression": None}
        async with server.connect(PATH, **options) as client:
            await create(client, max_output_tokens=4_000)
            frames = await until_shown(client, "response.in_progress")
            client.transport.pause_reading()
            async with server.connect(PATH) as other:
                await create(other, max_output_tokens=1000)
                assert text_of(await until_end(other)) == "a" * 1000
                [stalled, _] = sorted(
                    server.server.server_state.connections,
                    key=lambda connection: -connection.transport.get_write_buffer_size(),
                )
                assert stalled.transport.get_write_buffer_size() < 2**18
            await server.until_left()
            client.transport.resume_reading()
            frames += await receive_until_closed(client)
            assert (client.close_code, client.close_reason) == (1008, "nothing was read for 0.2 s")
        await server.until_idle()
        cursor = frames[-1]["sequence_number"]
        async with server.connect(
            resuming((frames[0]["response"]["id"], cursor)), max_size=None
        ) as client:
            frames += await until_end(client)
        assert text_of(frames) == "a" * 4_000
        assert_valid_responses(frames)


# Shutdown


async def test_drain_lets_responses_end_and_closes_the_rest() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with (
        stream_server(backend, gate=gate) as server,
        server.connect(PATH) as running,
        server.connect(PATH) as idle,
    ):
        await create(running)
        await entered(gate)
        draining = asyncio.create_task(server.engine.drain(deadline_s=1000))
        server.app.state.services.connections.drain()
        assert await receive_until_closed(idle) == []
        assert idle.close_code == 1001
        await create(running, "late")
        frames = await until_end(running)
        assert endings(frames, "late") == ["shutting_down"]
        gate.open()
        frames += await receive_until_closed(running)
        assert running.close_code == 1001
        await draining
    assert text_of(frames) == "hello"
    assert_valid_responses(frames)
