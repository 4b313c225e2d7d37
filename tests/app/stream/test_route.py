"""`WS /v1/stream` behind the real server, with the client of the `websockets` library."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from streaming.backend import Batch, CacheGeometry, FailedRow, SampledToken
from streaming.backends.scripted import (
    Gate,
    ScriptedRunner,
    repeat_prompt,
    say,
    scripted_backend,
)
from streaming.errors import NoTokenAllowed
from tests.app.conversation import assert_conversation, text_of
from tests.app.serving import until
from tests.app.sockets import (
    StreamServer,
    bearer,
    receive,
    receive_stream,
    receive_until,
    receive_until_closed,
    refused_handshake,
    send,
    stream_server,
)
from tests.support import entered

STORY = "Es war einmal ein kleiner Bär 🐻, der hieß 熊. " * 4
KEYS: dict[str, Any] = {"api_keys": ("first", "second")}


@pytest.fixture
async def parrot() -> AsyncIterator[StreamServer]:
    async with stream_server(scripted_backend(repeat_prompt)) as server:
        yield server


async def ask(client: ClientConnection, stream_id: str = "a", **fields: Any) -> None:
    asked = {"prompt": "hi", "max_tokens": 1000, **fields}
    await send(client, type="generate", id=stream_id, **asked)


class CachedRunner(ScriptedRunner):
    """Has a KV cache that the engine allocates from, and counts the tokens that it runs."""

    def __init__(self, text: str, *, gate: Gate) -> None:
        cache = CacheGeometry(num_blocks=1024, block_size=4, max_batch_tokens=8)
        super().__init__(say(text), cache=cache, gate=gate)
        self.num_tokens = 0

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        self.num_tokens += batch.num_tokens
        return super().run(batch)


def num_held_blocks(server: StreamServer) -> int:
    cache = server.engine._engine._scheduler._block_manager
    assert cache is not None
    return 1024 - cache.num_free_blocks


# Generating.


@pytest.mark.pain(4)
async def test_a_prompt_is_continued(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        await ask(client, prompt=STORY)
        frames = await receive_stream(client)
    assert_conversation(frames)
    assert text_of(frames) == STORY
    num_tokens = len(STORY.encode())
    done = frames[-1]
    assert done["finish_reason"] == "stop"
    assert done["usage"] == {
        "prompt_tokens": num_tokens,
        "cached_tokens": 0,
        "completion_tokens": num_tokens + 1,
        "total_tokens": 2 * num_tokens + 1,
    }
    assert done["timings"]["ttft_s"] <= done["timings"]["total_s"]
    assert not any("\N{REPLACEMENT CHARACTER}" in text_of([frame]) for frame in frames)


async def test_messages_are_answered(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        messages = [{"role": "user", "content": "hi"}]
        await send(client, type="generate", messages=messages, metadata={"page": "7"})
        frames = await receive_stream(client)
    assert text_of(frames) == "user: hi\nassistant: "
    assert frames[0]["id"] == "stream_1"
    assert frames[0]["model"] == "scripted"
    assert frames[0]["metadata"] == {"page": "7"}


async def test_token_ids_and_logprobs_on_request(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        await ask(client, prompt=[104, 105], return_token_ids=True, logprobs=1)
        frames = await receive_stream(client)
    deltas = [frame for frame in frames if frame["type"] == "delta"]
    assert list(chain.from_iterable(delta["token_ids"] for delta in deltas)) == [104, 105, 256]
    first = {"token_id": 104, "token": "h", "logprob": -0.5}
    assert deltas[0]["logprobs"][0] == {**first, "top": [first]}
    assert deltas[-1]["logprobs"][-1]["token"] == "<eos>"


@pytest.mark.pain(5)
@pytest.mark.pain(11)
@pytest.mark.parametrize(
    ("says", "shown", "num_tokens"),
    [("abENDcd", "ab", 5), ("abENxENDcd", "abENx", 8), ("END", "", 3), ("abEN", "abEN", 5)],
)
async def test_a_stop_string_is_not_sent(says: str, shown: str, num_tokens: int) -> None:
    """Each character is a token. Text that only looked like the stop string comes at the end."""
    async with stream_server(scripted_backend(say(says))) as server, server.connect() as client:
        await ask(client, stop=["END"])
        frames = await receive_stream(client)
    assert_conversation(frames)
    assert text_of(frames) == shown
    assert frames[-1]["finish_reason"] == "stop"
    assert frames[-1]["usage"]["completion_tokens"] == num_tokens


async def test_a_prompt_has_a_default_length_of_16(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        await send(client, type="generate", prompt="x" * 40)
        frames = await receive_stream(client)
    assert (text_of(frames), frames[-1]["finish_reason"]) == ("x" * 16, "length")


async def test_one_of_two_streams_on_a_socket_is_cancelled() -> None:
    gate = Gate()
    backend = scripted_backend(say("first answer", "second answer"), gate=gate)
    async with stream_server(backend, gate=gate) as server, server.connect() as client:
        await ask(client, "one")
        await receive_until(client, "accepted")
        await ask(client, "two")
        await receive_until(client, "accepted")
        gate.allow(5)
        frames = await receive_until(client, "delta", stream_id="two")
        await send(client, type="cancel", id="two")
        await send(client, type="cancel", id="two")
        await send(client, type="cancel", id="unknown")
        frames += await receive_until(client, "error")
        gate.open()
        frames += await receive_until(client, "done", stream_id="one")
        while not any(frame["type"] == "done" and frame["id"] == "two" for frame in frames):
            frames.append(await receive(client))
    ends = {frame["id"]: frame["finish_reason"] for frame in frames if frame["type"] == "done"}
    assert ends == {"one": "stop", "two": "cancelled"}
    assert text_of(frames, "one") == "first answer"
    assert "second answer".startswith(text_of(frames, "two"))
    [error] = [frame for frame in frames if frame["type"] == "error"]
    assert error["error"]["code"] == "unknown_id"


async def test_a_queued_stream_receives_its_position() -> None:
    gate = Gate()
    backend = scripted_backend(say("answer"), gate=gate, max_num_seqs=1)
    async with stream_server(backend, gate=gate) as server, server.connect() as client:
        for stream_id in ("one", "two", "three"):
            await ask(client, stream_id)
            await receive_until(client, "accepted", stream_id=stream_id)
        gate.allow(2)
        frames = await receive_until(client, "queued", stream_id="three")
        assert frames[-1]["position"] == 1
        gate.open()
        frames += await receive_until(client, "done", stream_id="three")
    places = {(frame["id"], frame["position"]) for frame in frames if frame["type"] == "queued"}
    assert {("two", 0), ("three", 1)} <= places
    assert all(frame["estimated_wait_s"] >= 0 for frame in frames if frame["type"] == "queued")


# Resuming.


async def test_resume_at_every_cursor_of_an_ended_log(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        await ask(client, prompt="año €😀")
        whole = await receive_stream(client)
    generation_id, last = whole[0]["generation_id"], whole[-1]["seq"]
    deltas = [frame for frame in whole if frame["type"] == "delta"]
    async with parrot.connect() as client:
        for after in range(-1, last + 1):
            await send(client, type="resume", id="b", generation_id=generation_id, after=after)
            frames = await receive_stream(client)
            assert_conversation(frames)
            assert frames[-1] == {**whole[-1], "id": "b"}
            shown = [frame for frame in deltas if frame["seq"] <= after]
            if after in (-1, *(frame["seq"] for frame in deltas), last):
                assert text_of(shown) + text_of(frames) == "año €😀"
            kinds = [frame["type"] for frame in frames]
            assert kinds[:2] == ["accepted", "started"]


async def test_resume_on_new_sockets_during_the_generation() -> None:
    gate = Gate()
    backend = scripted_backend(say(STORY), gate=gate)
    async with stream_server(backend, gate=gate, disconnect_grace_s=1000) as server:
        async with server.connect() as client:
            await ask(client)
            gate.allow()
            frames = await receive_until(client, "delta")
        generation_id = frames[0]["generation_id"]
        text, cursor = text_of(frames), frames[-1]["seq"]
        while cursor < 60:
            async with server.connect() as client:
                await send(client, type="resume", generation_id=generation_id, after=cursor)
                gate.allow(7)
                frames = await receive_until(client, "delta")
                assert frames[0]["generation_id"] == generation_id
                text, cursor = text + text_of(frames), frames[-1]["seq"]
        gate.open()
        async with server.connect() as client:
            await send(client, type="resume", generation_id=generation_id, after=cursor)
            frames = await receive_stream(client)
        assert text + text_of(frames) == STORY


async def test_two_sockets_receive_one_generation() -> None:
    gate = Gate()
    async with (
        stream_server(scripted_backend(say(STORY), gate=gate), gate=gate) as server,
        server.connect() as one,
        server.connect() as two,
    ):
        await ask(one)
        [accepted] = await receive_until(one, "accepted")
        generation_id = accepted["generation_id"]
        await send(two, type="resume", generation_id=generation_id, after=-1)
        await receive_until(two, "accepted")
        gate.open()
        for frames in (await receive_stream(one), await receive_stream(two)):
            assert text_of(frames) == STORY


# Errors.

GENERATE = {"type": "generate", "id": "x", "prompt": "hi"}
RESUME = {"type": "resume", "id": "x", "generation_id": "gen_unknown", "after": -1}


ERRORS: list[tuple[Any, str, str | None]] = [
    ("{", "invalid_json", None),
    (b"\x00\x01", "invalid_json", None),
    ('{"type": "generate", "prompt": "hi", "temperature": NaN}', "invalid_json", None),
    ("[1]", "invalid_request", None),
    ({"type": "gen"}, "unknown_type", "type"),
    ({**GENERATE, "temperature": "warm"}, "invalid_request", "temperature"),
    ({**GENERATE, "temperature": 3}, "invalid_request", "temperature"),
    ({**GENERATE, "max_tokens": 0}, "invalid_request", "max_tokens"),
    ({**GENERATE, "seed": 10**400}, "invalid_request", "seed"),
    ({**GENERATE, "stream": True}, "invalid_request", "stream"),
    ({**GENERATE, "response_format": {"type": "xml"}}, "invalid_request", "response_format"),
    (
        {**GENERATE, "response_format": {"type": "regex", "pattern": "a"}},  # no grammars here
        "invalid_request",
        "response_format",
    ),
    ({**GENERATE, "prompt": ""}, "invalid_request", "prompt"),
    ({**GENERATE, "prompt": []}, "invalid_request", "prompt"),
    ({**GENERATE, "prompt": [999]}, "invalid_request", "prompt"),
    ({**GENERATE, "prompt": "a\ud800"}, "invalid_request", "prompt"),
    ({**GENERATE, "\udfff": 1}, "invalid_request", None),
    ({**GENERATE, "messages": []}, "invalid_request", "messages"),
    ({"type": "generate", "id": "x"}, "invalid_request", "prompt"),
    ({"type": "generate", "id": "x", "messages": []}, "invalid_request", "messages"),
    ({**GENERATE, "prompt": "x" * 5000}, "prompt_too_long", "prompt"),
    ({**GENERATE, "prompt": "x" * 4096}, "prompt_too_long", "prompt"),
    ({**GENERATE, "model": "gpt"}, "model_not_found", "model"),
    ({"type": "cancel", "id": "z"}, "unknown_id", "id"),
    (RESUME, "generation_not_found", "generation_id"),
]


@pytest.mark.pain(13)
async def test_the_socket_stays_open_after_every_error(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        for message, code, param in ERRORS:
            await client.send(json.dumps(message) if isinstance(message, dict) else message)
            frame = await receive(client)
            error = frame["error"]
            found = (error["code"], error.get("param"), error["retryable"], frame.get("id"))
            is_attempt = isinstance(message, dict) and message["type"] in ("generate", "resume")
            assert found == (code, param, False, "x" if is_attempt else None)
            await ask(client, "x" if is_attempt else "y")
            assert text_of(await receive_stream(client)) == "hi"


async def test_a_cursor_beyond_the_log(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        await ask(client)
        frames = await receive_stream(client)
        resume = {**RESUME, "generation_id": frames[0]["generation_id"]}
        await send(client, **{**resume, "after": frames[-1]["seq"] + 1})
        error = await receive(client)
    assert (error["id"], error["error"]["code"]) == ("x", "cursor_lost")


async def test_a_duplicate_id_does_not_affect_the_open_stream() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with stream_server(backend, gate=gate) as server, server.connect() as client:
        await ask(client)
        await ask(client)
        frames = await receive_until(client, "error")
        assert frames[-1]["error"]["code"] == "duplicate_id"
        gate.open()
        frames += await receive_stream(client)
    assert text_of(frames) == "hello"
    assert_conversation(frames)


async def test_a_queue_that_is_full() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate, max_num_seqs=1)
    limits: dict[str, Any] = {"max_waiting_requests": 1}
    async with stream_server(backend, gate=gate, **limits) as server, server.connect() as client:
        await ask(client, "runs")
        await entered(gate)
        await ask(client, "waits")
        frames = await receive_until(client, "accepted", stream_id="waits")
        await ask(client, "refused")
        frames += await receive_until(client, "error")
        assert (frames[-1]["id"], frames[-1]["error"]["code"]) == ("refused", "overloaded")
        assert frames[-1]["error"]["retryable"] is True
        assert frames[-1]["error"]["retry_after_s"] > 0
        gate.open()
        frames += await receive_until(client, "done", stream_id="waits")
    assert_conversation(frames)


async def test_the_number_of_streams_is_limited() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with (
        stream_server(backend, gate=gate, max_streams=2) as server,
        server.connect() as client,
    ):
        for stream_id in ("one", "two", "three"):
            await ask(client, stream_id)
        frames = await receive_until(client, "error")
        assert (frames[-1]["id"], frames[-1]["error"]["code"]) == ("three", "rate_limited")
        gate.open()
        frames += await receive_until(client, "done")
        await ask(client, "three")
        frames += await receive_until(client, "done", stream_id="three")
    assert text_of(frames, "three") == "hello"


async def test_rate_limited_messages_have_a_retry_time() -> None:
    limits: dict[str, Any] = {"max_messages_per_s": 0.01, "max_streams": 1}
    async with stream_server(scripted_backend(), **limits) as server, server.connect() as client:
        for _ in range(3):
            await send(client, type="cancel", id="unknown")
        frames = [await receive(client) for _ in range(3)]
        codes = [frame["error"]["code"] for frame in frames]
        assert codes == ["unknown_id", "unknown_id", "rate_limited"]
        assert 90 < frames[-1]["error"]["retry_after_s"] <= 100
        await ask(client)
        assert (await receive(client))["id"] == "a"


async def test_a_generation_that_takes_too_long() -> None:
    backend = scripted_backend(lambda _: iter(lambda: 97, None), max_model_len=10**9)
    async with stream_server(backend, request_timeout_s=0.05) as server, server.connect() as client:
        await ask(client, max_tokens=10**8)
        frames = await receive_stream(client)
    assert frames[-1]["error"]["code"] == "timeout"
    assert frames[-1]["seq"] > frames[-2]["seq"]
    assert_conversation(frames)


async def test_a_failed_step_ends_only_its_streams() -> None:
    backend = scripted_backend(lambda _: [97, ValueError("broken")])
    async with stream_server(backend) as server, server.connect() as client:
        for _ in range(2):
            await ask(client)
            frames = await receive_stream(client)
            assert frames[-1]["error"]["code"] == "engine_error"
            assert "broken" not in frames[-1]["error"]["message"]
            assert_conversation(frames)


async def test_a_grammar_without_a_next_token_ends_only_its_stream() -> None:
    dead_end = NoTokenAllowed(param="tools", reason="the grammar allows no token here")
    backend = scripted_backend(
        lambda sequence: [*b"ab", dead_end] if sequence.prompt_ids[0] == ord("!") else [*b"abcd"]
    )
    async with stream_server(backend) as server, server.connect() as client:
        await ask(client, "stuck", prompt="!")
        await ask(client, "fine", prompt="?")
        *_, error = await receive_until(client, "error")
        *_, done = await receive_until(client, "done")
    assert (error["id"], done["id"]) == ("stuck", "fine")
    assert error["error"] == {
        "code": "no_token_allowed",
        "message": "tools: the grammar allows no token here",
        "retryable": False,
        "param": "tools",
    }


@pytest.mark.pain(16)
async def test_generations_of_other_callers_are_not_found() -> None:
    gate = Gate()
    async with (
        stream_server(scripted_backend(say(STORY), gate=gate), gate=gate, **KEYS) as server,
        server.connect(**bearer("first")) as mine,
        server.connect(**bearer("second")) as other,
    ):
        await ask(mine)
        [accepted] = await receive_until(mine, "accepted")
        resume = {**RESUME, "generation_id": accepted["generation_id"]}
        await send(other, **resume)
        error = await receive(other)
        assert error["error"]["code"] == "generation_not_found"
        assert error["error"]["message"] == (
            f"generation_id: generation {accepted['generation_id']!r} was not found; "
            "it may have expired. Start a new one."
        )
        await send(other, type="cancel", id="a")
        assert (await receive(other))["error"]["code"] == "unknown_id"
        gate.open()
        assert (await receive_stream(mine))[-1]["finish_reason"] == "stop"


# Frames that the WebSocket layer refuses.


@pytest.mark.parametrize("num_bytes", [2**20 + 1, 20 * 2**20])
async def test_a_huge_frame_closes_with_1009(parrot: StreamServer, num_bytes: int) -> None:
    async with parrot.connect() as client:
        with suppress(ConnectionClosed):
            await client.send("x" * num_bytes)
        await receive_until_closed(client)
        assert client.close_code == 1009
    async with parrot.connect() as client:
        await ask(client)
        assert text_of(await receive_stream(client)) == "hi"


async def test_a_huge_frame_does_not_end_a_generation() -> None:
    gate = Gate()
    backend = scripted_backend(say(STORY), gate=gate)
    async with stream_server(backend, gate=gate) as server:
        async with server.connect() as client:
            await ask(client)
            gate.allow()
            frames = await receive_until(client, "delta")
            gate.allow(3)
            with suppress(ConnectionClosed):
                await client.send("x" * 2**21)
            await receive_until_closed(client)
        async with server.connect() as client:
            resume = {**RESUME, "generation_id": frames[0]["generation_id"]}
            await send(client, **resume)
            gate.open()
            assert text_of(await receive_stream(client)) == STORY


async def test_invalid_utf8_closes_with_1007(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        await client.send(b"\xed\xa0\x80", text=True)  # a lone surrogate
        await receive_until_closed(client)
        assert client.close_code == 1007


async def test_a_frame_of_the_maximum_size_is_read(parrot: StreamServer) -> None:
    async with parrot.connect() as client:
        await ask(client, prompt="x" * (2**20 - 200))
        assert (await receive(client))["error"]["code"] == "prompt_too_long"


# Other addresses and plain HTTP.


async def test_plain_http_is_answered_with_426(parrot: StreamServer) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{parrot.http_url}/v1/stream")
    assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")
    assert answer.json()["error"]["code"] == "upgrade_required"


async def test_other_paths_are_not_found(parrot: StreamServer) -> None:
    for path in ("/", "/v1", "/v1/streams", "/static/x", "/v1/stream/"):
        status, code, _ = await refused_handshake(parrot, path=path)
        assert (status, code) == (404, "not_found"), path


# Dropped connections.


@pytest.mark.pain(1)
async def test_the_generation_is_cancelled_after_the_grace_period() -> None:
    gate = Gate()
    backend = replace(scripted_backend(), runner=CachedRunner(STORY, gate=gate))
    async with stream_server(backend, gate=gate, disconnect_grace_s=0.01) as server:
        async with server.connect() as client:
            await ask(client)
            gate.allow()
            frames = await receive_until(client, "delta")
            client.transport.abort()
        await server.until_left()
        assert num_held_blocks(server) > 0
        log = server.engine.find(frames[0]["generation_id"], caller="anyone")
        await until(lambda: not server.engine._subscribers.in_grace)
        gate.allow(2)
        await server.until_idle()
        assert log.usage.completion_tokens <= 3
        await until(lambda: num_held_blocks(server) == 0)
        async with server.connect() as client:
            resume = {**RESUME, "generation_id": log.generation_id}
            await send(client, **resume)
            frames = await receive_stream(client)
        assert frames[-1]["finish_reason"] == "cancelled"


@pytest.mark.pain(2)
async def test_a_drop_during_prefill_ends_the_prefill() -> None:
    gate = Gate()
    runner = CachedRunner(STORY, gate=gate)
    backend = replace(scripted_backend(), runner=runner)
    async with stream_server(backend, gate=gate, disconnect_grace_s=0) as server:
        async with server.connect() as client:
            await ask(client, prompt="x" * 80)
            await entered(gate)
            gate.allow()
            await entered(gate)  # prefill of the second chunk of eight tokens
            client.transport.abort()
        await server.until_left()
        gate.allow()
        await server.until_idle()
        await until(lambda: num_held_blocks(server) == 0)
        assert runner.num_tokens == 16


async def test_a_connection_without_pongs_is_closed() -> None:
    gate = Gate()
    pings: dict[str, Any] = {
        "ping_interval_s": 0.05,
        "ping_timeout_s": 0.05,
        "disconnect_grace_s": 1000,
    }
    async with (
        stream_server(scripted_backend(say(STORY), gate=gate), gate=gate, **pings) as server,
        server.connect() as client,
    ):
        await ask(client)
        await receive_until(client, "accepted")
        client.transport.pause_reading()
        await server.until_left()
        assert len(server.engine._subscribers.in_grace) == 1
        client.transport.abort()


@pytest.mark.pain(3)
@pytest.mark.slow
async def test_a_hundred_random_kills_leave_nothing() -> None:
    dice = random.Random(20)
    backend = scripted_backend(lambda _: iter(lambda: 97, None), max_num_seqs=4)
    limits: dict[str, Any] = {
        "disconnect_grace_s": 0,
        "max_connections": 10,
        "max_waiting_requests": 20,
    }

    async def be_killed(server: StreamServer) -> None:
        async with server.connect(max_queue=None) as client:
            for index in range(dice.randint(0, 3)):
                await ask(client, f"a{index}", max_tokens=dice.choice((3, 500)))
            if dice.random() < 0.5:
                await send(client, type="cancel", id="a0")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    for _ in range(dice.choice((0, 1, 2, 5, 30))):
                        await client.recv()
            client.transport.abort()

    async with stream_server(backend, **limits) as server:
        for _ in range(20):
            kills = [be_killed(server) for _ in range(5)]
            await asyncio.gather(*kills)
        await server.until_left()
        await server.until_idle()
        assert not server.engine._subscribers._counts
        async with server.connect() as client:
            await ask(client, max_tokens=5)
            assert text_of(await receive_stream(client)) == "aaaaa"


@pytest.mark.pain(3)
@pytest.mark.slow
async def test_health_counts_are_right_while_a_hundred_clients_drop() -> None:
    """The test counts sockets and streams itself."""
    dice = random.Random(22)
    gate = Gate()
    backend = scripted_backend(lambda _: iter(lambda: 97, None), max_num_seqs=4, gate=gate)
    async with (
        stream_server(backend, gate=gate, disconnect_grace_s=0) as server,
        httpx.AsyncClient(base_url=server.http_url) as calling,
    ):

        async def health_counts() -> tuple[int, int]:
            """Return the number of sockets and streams from `/health`."""
            answer = await calling.get("/health")
            health = answer.json()
            assert (answer.status_code, health["status"]) == (200, "ok")
            assert health["active"] <= 4
            return health["connections"], health["active"] + health["queued"]

        for _ in range(20):
            async with AsyncExitStack() as stack:
                clients: list[tuple[ClientConnection, int]] = []
                for _ in range(5):
                    client = await stack.enter_async_context(server.connect(max_queue=None))
                    clients.append((client, dice.randint(0, 3)))
                    for index in range(clients[-1][1]):
                        await ask(client, f"a{index}", max_tokens=4000)
                        await receive_until(client, "accepted")
                num_open = sum(num_streams for _, num_streams in clients)
                assert await health_counts() == (5, num_open)
                dice.shuffle(clients)
                for num_left, (client, num_streams) in zip(range(4, -1, -1), clients, strict=True):
                    client.transport.abort()
                    num_open -= num_streams
                    while (seen := await health_counts()) != (num_left, num_open):
                        assert num_left <= seen[0] <= num_left + 1
                        assert num_open <= seen[1] <= num_open + num_streams
                        gate.allow()  # a cancel takes effect with the next step
        gate.open()
        async with server.connect() as client:
            await ask(client, max_tokens=5)
            assert text_of(await receive_stream(client)) == "aaaaa"


# Clients that do not read.


@pytest.mark.pain(9)
async def test_a_client_that_never_reads_is_closed_and_does_not_delay_others() -> None:
    backend = scripted_backend(lambda _: [97] * 4_000, max_model_len=5_000)
    limits: dict[str, Any] = {"stall_timeout_s": 0.2, "disconnect_grace_s": 1000}
    async with stream_server(backend, send_buffer_bytes=4096, **limits) as server:
        async with server.connect(max_size=None, ping_interval=None) as client:
            await ask(client, "long", max_tokens=4_000, return_token_ids=True, logprobs=5)
            frames = await receive_until(client, "started")
            client.transport.pause_reading()
            async with server.connect() as other:
                await ask(other, max_tokens=1000)
                assert text_of(await receive_stream(other)) == "a" * 1000
                [stalled, _] = sorted(
                    server.server.server_state.connections,
                    key=lambda connection: -connection.transport.get_write_buffer_size(),
                )
                assert stalled.transport.get_write_buffer_size() < 2**19
            await server.until_left()
            client.transport.resume_reading()
            frames += await receive_until_closed(client)
            assert (client.close_code, client.close_reason) == (1008, "nothing was read for 0.2 s")
        await server.until_idle()
        cursor = max((frame["seq"] for frame in frames if "seq" in frame), default=-1)
        generation_id = frames[0]["generation_id"]
        async with server.connect() as client:
            await send(client, type="resume", generation_id=generation_id, after=cursor)
            rest = await receive_stream(client)
        assert text_of(frames) + text_of(rest) == "a" * 4_000


# Shutdown.


@pytest.mark.pain(15)
async def test_drain_lets_streams_end_and_closes_the_rest() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with (
        stream_server(backend, gate=gate) as server,
        server.connect() as running,
        server.connect() as idle,
    ):
        await ask(running)
        await entered(gate)
        draining = asyncio.create_task(server.engine.drain(deadline_s=1000))
        server.app.state.services.connections.drain()
        assert await receive_until_closed(idle) == []
        assert idle.close_code == 1001
        await ask(running, "late")
        frames = await receive_until(running, "error")
        assert (frames[-1]["id"], frames[-1]["error"]["code"]) == ("late", "shutting_down")
        gate.open()
        frames += await receive_until(running, "done")
        assert await receive_until_closed(running) == []
        assert running.close_code == 1001
        await draining
    assert text_of(frames) == "hello"
    assert_conversation(frames)
