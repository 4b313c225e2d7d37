"""Handshakes that are accepted or refused, with `WS /v1/stream` as the socket."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Message
from websockets.asyncio.client import ClientConnection

from streaming.backends.scripted import repeat_prompt, scripted_backend
from tests.app.conversation import text_of
from tests.app.serving import serving
from tests.app.sockets import (
    StreamServer,
    bearer,
    receive_stream,
    refused_handshake,
    send,
    stream_server,
)

KEYS: dict[str, Any] = {"api_keys": ("first", "second")}


def key_subprotocol(key: str) -> str:
    return "tokenwire.key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


@pytest.fixture
async def server() -> AsyncIterator[StreamServer]:
    async with stream_server(scripted_backend(repeat_prompt)) as server:
        yield server


async def ask(client: ClientConnection) -> None:
    await send(client, type="generate", prompt="hi", max_tokens=1000)


async def test_a_valid_key_is_required() -> None:
    wrong: list[dict[str, Any]] = [
        {},
        bearer("third"),
        bearer(""),
        {"additional_headers": {"authorization": "Basic first"}},
        {"subprotocols": ["tokenwire.v1"]},
        {"subprotocols": ["tokenwire.v1", key_subprotocol("third")]},
        {"subprotocols": ["tokenwire.v1", "tokenwire.key.*"]},
        {"subprotocols": ["tokenwire.v1", "tokenwire.key._w"]},
    ]
    async with stream_server(scripted_backend(), **KEYS) as server:
        for options in wrong:
            status, code, headers = await refused_handshake(server, **options)
            assert (status, code) == (401, "unauthorized"), options
            assert headers["www-authenticate"] == "Bearer"


async def test_a_key_in_the_query_is_ignored() -> None:
    async with stream_server(scripted_backend(), **KEYS) as server, httpx.AsyncClient() as client:
        upgrade = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        url = f"{server.http_url}/v1/stream?key=first&api_key=first&token=first"
        assert (await client.get(url, headers=upgrade)).status_code == 401


async def test_a_valid_key_is_accepted() -> None:
    right: list[tuple[dict[str, Any], str | None]] = [
        (bearer("first"), None),
        ({"additional_headers": {"authorization": "bearer second"}}, None),
        ({**bearer("first"), "subprotocols": ["other", "tokenwire.v1"]}, "tokenwire.v1"),
        ({"subprotocols": ["tokenwire.v1", key_subprotocol("first")]}, "tokenwire.v1"),
        ({"subprotocols": [key_subprotocol("second"), "tokenwire.v1"]}, "tokenwire.v1"),
    ]
    async with stream_server(scripted_backend(), **KEYS) as server:
        for options, answer in right:
            async with server.connect(**options) as client:
                assert client.subprotocol == answer
                await ask(client)
                assert text_of(await receive_stream(client)) == "hi"


@pytest.mark.pain(17)
async def test_other_origins_are_refused(server: StreamServer) -> None:
    status, code, _ = await refused_handshake(server, origin="http://evil.example")
    assert (status, code) == (403, "forbidden_origin")
    async with server.connect(origin=server.http_url) as client:
        await ask(client)
        assert text_of(await receive_stream(client)) == "hi"


@pytest.mark.pain(17)
async def test_an_allowed_origin_is_accepted() -> None:
    allowed: dict[str, Any] = {"allowed_origins": ("https://app.example",)}
    async with stream_server(scripted_backend(), **allowed) as server:
        async with server.connect(origin="https://app.example"):
            pass
        assert (await refused_handshake(server, origin="https://app.example.evil"))[0] == 403
        assert (await refused_handshake(server, origin="null"))[0] == 403


async def test_the_number_of_sockets_is_limited() -> None:
    async with stream_server(scripted_backend(), max_connections=2) as server:
        async with server.connect(), server.connect():
            status, code, headers = await refused_handshake(server)
            assert (status, code, headers["retry-after"]) == (429, "too_many_connections", "1")
        await server.until_left()
        async with server.connect() as client:
            await ask(client)
            assert text_of(await receive_stream(client)) == "hi"


async def test_the_number_of_sockets_of_one_caller_is_limited() -> None:
    async with (
        stream_server(scripted_backend(), max_connections_per_caller=1, **KEYS) as server,
        server.connect(**bearer("first")),
    ):
        status, code, headers = await refused_handshake(server, **bearer("first"))
        assert (status, code, headers["retry-after"]) == (429, "too_many_connections", "1")
        async with server.connect(**bearer("second")) as client:
            await ask(client)
            assert text_of(await receive_stream(client)) == "hi"


async def test_refused_while_the_server_drains(server: StreamServer) -> None:
    server.app.state.services.connections.drain()
    status, code, headers = await refused_handshake(server)
    assert (status, code, headers["retry-after"]) == (503, "shutting_down", "1")


async def test_refused_while_the_engine_is_dead() -> None:
    """Calls the app directly: a server shuts down when it notices that its engine is dead."""
    received: Iterator[Message] = iter([{"type": "websocket.connect"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(received)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/v1/stream",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    async with serving(scripted_backend()) as (app, engine):
        engine.has_failed = True
        await app(scope, receive, send)
    start, body = sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert json.loads(body["body"])["error"]["code"] == "overloaded"
