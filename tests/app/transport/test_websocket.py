"""`WebSocketProtocol` over real sockets: clients that read nothing or send too much."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.frames import Frame

from app.server import Server
from app.transport.websocket import WebSocketProtocol
from streaming.backends.scripted import say, scripted_backend
from tests.app.conversation import text_of
from tests.app.serving import until
from tests.app.sockets import (
    StreamServer,
    receive,
    receive_stream,
    receive_until,
    send,
    stream_server,
)
from tests.attacker import PING, TEXT, fragments, frame
from tests.support import yield_to_loop


class Impatient(WebSocketProtocol):
    """Aborts soon after the handler has returned."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = 0.05


def be_impatient(server: Server) -> None:
    server.config.ws = Impatient


@pytest.mark.pain(9)
async def test_a_client_that_reads_nothing_is_disconnected() -> None:
    backend = scripted_backend(lambda _: [97] * 10_000, max_model_len=20_000)
    async with (
        stream_server(
            backend, prepare=be_impatient, send_buffer_bytes=4096, stall_timeout_s=0.05
        ) as server,
        server.connect(max_size=None, ping_interval=None) as client,
    ):
        await send(client, type="generate", prompt="hi", max_tokens=10_000, logprobs=5)
        await receive_until(client, "accepted")
        client.transport.pause_reading()
        await until(lambda: not server.server.server_state.connections)
        assert len(server.app.state.services.connections) == 0
        client.transport.abort()


async def test_a_client_that_reads_stays_connected() -> None:
    backend = scripted_backend(say("hello"))
    async with stream_server(backend, prepare=be_impatient) as server:
        async with server.connect() as client:
            for _ in range(2):
                await send(client, type="generate", prompt="hi")
                assert text_of(await receive_stream(client)) == "hello"
        assert client.close_code == 1000
        await until(lambda: not server.server.server_state.connections)


async def test_a_closed_client_that_reads_nothing_does_not_break_the_shutdown() -> None:
    backend = scripted_backend(lambda _: [97] * 10_000, max_model_len=20_000)
    async with stream_server(backend, send_buffer_bytes=4096) as server:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(server.address)
        client = await server.connect(sock=narrow, ping_interval=None)
        client.transport.pause_reading()
        await send(client, type="generate", prompt="hi", max_tokens=10_000, logprobs=5)
        [connection] = server.server.server_state.connections
        assert isinstance(connection, WebSocketProtocol)
        await until(lambda: not connection.writable.is_set())
        client.protocol.send_close(1000)
        client.transport.write(b"".join(client.protocol.data_to_send()))
        await server.until_left()
        assert server.server.server_state.connections == {connection}
    client.transport.abort()
    assert server.server.lifespan.shutdown_event.is_set()


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/responses", "/nowhere"])
async def test_a_refused_handshake_is_not_logged_as_an_error(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stream_server(scripted_backend(), api_keys="right") as server:
        with pytest.raises(InvalidStatus) as refused:
            await server.connect(path)
        await until(lambda: not server.server.server_state.tasks)
    assert refused.value.response.status_code == (404 if path == "/nowhere" else 401)
    assert b"error" in refused.value.response.body
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Clients that send too much.


class Strict(WebSocketProtocol):
    """Closes a flooding client at once."""

    flood_timeout = 0.0


def be_strict(server: Server) -> None:
    server.config.ws = Strict


@asynccontextmanager
async def flooded(
    prepare: Callable[[Server], None] = lambda _: None, **settings: Any
) -> AsyncIterator[tuple[StreamServer, ClientConnection, WebSocketProtocol]]:
    """Connect one client; yield the server, the client, and the server's end of the connection."""
    async with stream_server(scripted_backend(say("hello")), prepare=prepare, **settings) as server:
        client = await server.connect(ping_interval=None)
        [connection] = server.server.server_state.connections
        assert isinstance(connection, WebSocketProtocol)
        yield server, client, connection
        client.transport.abort()


async def close_code(client: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        await client.recv()
    return client.close_code


async def test_a_message_may_have_a_thousand_fragments() -> None:
    message = json.dumps({"type": "generate", "prompt": "hi", "max_tokens": 7}).encode()
    message += b" " * (1024 - len(message))
    async with flooded() as (_, client, _):
        client.transport.write(fragments(message, 1))
        assert text_of(await receive_stream(client)) == "hello"


@pytest.mark.parametrize("payload", [b"x", b""], ids=["a byte each", "empty"])
async def test_a_message_with_more_fragments_closes_the_socket(payload: bytes) -> None:
    async with flooded() as (_, client, _):
        client.transport.write(frame(TEXT, b"x", is_last=False))
        client.transport.write(frame(0, payload, is_last=False) * 50_000)
        assert await close_code(client) == 1008
        assert client.close_reason == "a message has more than 1024 frames"


async def test_only_the_last_of_many_pings_is_answered() -> None:
    async with flooded() as (_, client, connection):
        pongs: list[bytes] = []
        receive_frame = client.protocol.recv_frame

        def note(frame: Frame) -> None:
            pongs.append(bytes(frame.data))
            receive_frame(frame)

        client.protocol.recv_frame = note  # type: ignore[method-assign]
        client.transport.write(b"".join(frame(PING, b"%d" % number) for number in range(1000)))
        await until(lambda: connection.conn.num_frames == 1000)
        await until(lambda: bool(pongs) and pongs[-1] == b"999")
    assert len(pongs) < 200


async def test_a_client_that_reads_no_pongs_costs_no_memory() -> None:
    async with flooded(send_buffer_bytes=4096, max_messages_per_s=1e6) as (server, _, _):
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(server.address)
        before = set(server.server.server_state.connections)
        client = await server.connect(sock=narrow, ping_interval=None)
        [connection] = server.server.server_state.connections - before
        assert isinstance(connection, WebSocketProtocol)
        client.transport.pause_reading()
        client.transport.write(frame(PING, b"x" * 125) * 20_000)
        most = 0
        while connection.conn.num_frames < 20_000:
            await yield_to_loop()
            most = max(most, connection.transport.get_write_buffer_size())
        client.transport.abort()
    assert most < 2**17  # all pongs would be 2.5 MB


async def test_a_pong_waits_for_room_in_the_send_buffer() -> None:
    async with flooded() as (_, client, connection):
        connection.pause_writing()
        client.transport.write(frame(PING, b"first") + frame(PING, b"last"))
        await until(lambda: connection.conn.num_frames == 2)
        assert connection.conn._pong is not None
        assert connection.conn._pong.data == b"last"
        connection.resume_writing()
        assert connection.conn._pong is None


async def test_a_flood_of_pings_is_throttled_and_then_closed() -> None:
    async with flooded(be_strict) as (_, client, connection):
        client.transport.write(frame(PING) * 100_000)
        assert await close_code(client) == 1008
        assert client.close_reason == "too many frames"
        assert connection.conn.num_frames < 3000


async def test_a_client_that_stops_flooding_is_served_again() -> None:
    async with flooded(max_messages_per_s=100) as (_, client, connection):
        client.transport.write(frame(PING) * 2300)
        await until(lambda: connection._reader.is_throttled)
        await send(client, type="generate", prompt="hi", max_tokens=7)
        assert text_of(await receive_stream(client)) == "hello"
        await until(lambda: connection._flooding_since is None)


async def test_a_flood_does_not_hold_the_event_loop() -> None:
    """One read can return 40,000 pings; they are parsed over several loop iterations."""
    async with flooded(max_messages_per_s=1e6) as (_, client, connection):
        client.transport.write(frame(PING) * 100_000)
        most, last = 0, 0
        while connection.conn.num_frames < 100_000:
            await yield_to_loop()
            most = max(most, connection.conn.num_frames - last)
            last = connection.conn.num_frames
            assert connection._reader.num_unread_bytes <= 2**19
    assert most < 10_000


@pytest.mark.slow
async def test_bytes_beyond_the_rate_stay_in_the_kernel() -> None:
    async with flooded(max_message_bytes=2**16, max_bytes_per_s=2**20) as (_, client, connection):
        client.transport.write(frame(TEXT, b" " * 2**16) * 32)
        most = 0
        for _ in range(32):
            assert (await receive(client))["error"]["code"] == "invalid_json"
            most = max(most, connection._reader.num_unread_bytes)
    assert most <= 2**18  # one read


async def test_many_small_messages_do_not_fill_the_read_buffer() -> None:
    message = frame(TEXT, b"{")
    async with flooded(max_messages_per_s=1e6) as (_, client, connection):
        client.transport.write(message * 100_000)
        most = 0
        for _ in range(100):
            await receive(client)
            most = max(most, connection._reader.num_unread_bytes)
    assert most <= 2**18


async def test_compressed_messages_count_by_their_decompressed_size() -> None:
    backend = scripted_backend(say("hello"))
    async with (
        stream_server(backend, max_bytes_per_s=2**20, max_message_bytes=2**18) as server,
        server.connect("/v1/responses", ping_interval=None) as client,
    ):
        [connection] = server.server.server_state.connections
        assert isinstance(connection, WebSocketProtocol)
        for _ in range(5):
            await client.send(" " * 2**18)
        await until(lambda: connection._reader.is_throttled)


async def test_a_frame_that_is_too_big_is_answered_while_it_is_being_sent() -> None:
    """Closing a socket with unread input would reset it, and could lose the close frame."""
    async with flooded(max_message_bytes=2**16) as (_, client, _):
        client.transport.write(frame(TEXT, b"x" * 2**20) * 3)
        assert await close_code(client) == 1009


async def test_a_lingering_close_ends_after_a_moment() -> None:
    async with flooded() as (server, client, connection):
        client.transport.pause_reading()
        client.transport.write(b"\xff" * 100)
        await until(lambda: connection.close_sent)
        await until(lambda: not server.server.server_state.connections)


async def test_a_handshake_that_the_application_never_answers_times_out() -> None:
    async with stream_server(scripted_backend(), header_timeout_s=0.05) as server:
        hang = asyncio.Event()

        async def never(*_: Any) -> None:
            await hang.wait()

        server.server.config.loaded_app = never
        with pytest.raises(InvalidMessage):
            await server.connect()
        hang.set()
        await until(lambda: not server.server.server_state.connections)
