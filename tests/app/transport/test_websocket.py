"""The end of clients that read nothing, as far as the socket itself goes."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from app.server import Server
from app.transport.websocket import WebSocketProtocol
from streaming.backends.scripted import say, scripted_backend
from tests.app.conversation import text_of
from tests.app.serving import until
from tests.app.sockets import receive_stream, receive_until, send, stream_server


class Impatient(WebSocketProtocol):
    """Waits for no more than a moment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = 0.05


def be_impatient(server: Server) -> None:
    server.config.ws = Impatient


@pytest.mark.pain(9)
async def test_a_client_that_reads_nothing_loses_its_socket() -> None:
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


async def test_a_client_that_reads_is_left_in_peace() -> None:
    backend = scripted_backend(say("hello"))
    async with stream_server(backend, prepare=be_impatient) as server:
        async with server.connect() as client:
            for _ in range(2):
                await send(client, type="generate", prompt="hi")
                assert text_of(await receive_stream(client)) == "hello"
        assert client.close_code == 1000
        await until(lambda: not server.server.server_state.connections)


async def test_a_client_that_has_closed_and_reads_nothing_does_not_end_the_shutdown() -> None:
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
async def test_a_refused_handshake_is_no_error_in_the_log(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stream_server(scripted_backend(), api_keys="right") as server:
        with pytest.raises(InvalidStatus) as refused:
            await server.connect(path)
        await until(lambda: not server.server.server_state.tasks)
    assert refused.value.response.status_code == (404 if path == "/nowhere" else 401)
    assert b"error" in refused.value.response.body
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
