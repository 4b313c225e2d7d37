"""`HttpProtocol` over real sockets: requests, time limits, connection limits and rates."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from app.transport.http import HttpProtocol
from streaming.backends.scripted import Gate, repeat_prompt, scripted_backend
from tests.app.serving import until
from tests.app.sockets import StreamServer, receive_stream, receive_until, send, stream_server
from tests.attacker import TEXT, frame, handshake, request

BODY = b'{"prompt": "hi", "max_tokens": 5}'
JSON = ("Content-Type: application/json", f"Content-Length: {len(BODY)}")
CLOSE = "Connection: close"


class Line:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        return await self.reader.read()

    def close(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def dial(server: StreamServer) -> AsyncIterator[Line]:
    line = Line(*await asyncio.open_connection(*server.address))
    try:
        yield line
    finally:
        line.close()


async def answer_to(server: StreamServer, *parts: bytes) -> bytes:
    async with dial(server) as line:
        for part in parts:
            await line.send(part)
        return await line.rest()


@asynccontextmanager
async def parrot(**settings: Any) -> AsyncIterator[StreamServer]:
    async with stream_server(scripted_backend(repeat_prompt), **settings) as server:
        yield server


def connections(server: StreamServer) -> set[Any]:
    return server.server.server_state.connections


def code_of(answer: bytes) -> tuple[int, str]:
    """Return status and error code of an answer, which ends with its body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


# Every kind of request is answered.


async def test_an_upgrade_to_http2_is_ignored_and_the_body_is_kept() -> None:
    """httptools treats the body of such a request as data of the other protocol."""
    upgrade = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMA")
    async with parrot() as server:
        answer = await answer_to(
            server,
            request("/v1/completions", *JSON, *upgrade, method="POST", body=BODY),
            request("/v1/models", CLOSE),
        )
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert b'"text":"hi"' in answer


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_post_with_a_websocket_upgrade_is_a_post(version: str) -> None:
    asked = handshake(*JSON, method="POST", body=BODY)
    asked = asked.replace(
        b"POST /v1/stream HTTP/1.1", f"POST /v1/completions HTTP/{version}".encode()
    )
    async with parrot() as server, dial(server) as line:
        await line.send(asked)
        assert (await line.head()).startswith(b"HTTP/1.1 200 ")


async def test_http_1_0_has_no_websockets() -> None:
    async with parrot() as server:
        answer = await answer_to(server, handshake().replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert code_of(answer) == (426, "upgrade_required")


async def test_http_1_0_is_answered_and_closed() -> None:
    async with parrot() as server:
        answer = await answer_to(server, b"GET /livez HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_expect_100_continue_is_answered_before_the_body() -> None:
    async with parrot() as server, dial(server) as line:
        await line.send(request("/v1/completions", *JSON, "Expect: 100-continue", method="POST"))
        assert (await line.head()).startswith(b"HTTP/1.1 100 ")
        await line.send(BODY)
        assert (await line.head()).startswith(b"HTTP/1.1 200 ")


async def test_requests_sent_together_are_answered_in_order() -> None:
    async with parrot() as server:
        answer = await answer_to(
            server,
            *[request("/v1/completions", *JSON, method="POST", body=BODY)] * 3,
            request("/v1/models", CLOSE),
        )
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert answer.rindex(b'"object":"list"') > answer.rindex(b'"text":"hi"')


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request(CLOSE, method="get"), (405, "method_not_allowed")),
        (b"GET / HTTP/1.1\r\n\r\n", (400, "malformed_http")),  # no host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", (400, "malformed_http")),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
            (400, "malformed_http"),
        ),
        (request("/v1/models", "Content-Length: x"), (400, "malformed_http")),
        (request("/v1/models", "Content-Length: 1", "Content-Length: 2"), (400, "malformed_http")),
        (request("/v1/models", "Transfer-Encoding: gzip"), (400, "malformed_http")),
        (request("/v1/models", "X: " + "a" * 2**17), (431, "headers_too_big")),
        (request("/" + "a" * 2**17), (431, "headers_too_big")),
        (request("/v1/models", *["X: 1"] * 2**14), (431, "headers_too_big")),
        (handshake("Content-Length: 3", body=b"abc"), (400, "malformed_http")),
        (handshake("Transfer-Encoding: chunked", body=b"0\r\n\r\n"), (400, "malformed_http")),
        (handshake("X: " + "a" * 9000), (431, "headers_too_big")),
        (handshake(*["X: 1"] * 150), (431, "headers_too_big")),
    ],
    ids=lambda value: str(value[:40]),
)
async def test_an_invalid_request_is_answered_with_an_error(
    caplog: pytest.LogCaptureFixture, asked: bytes, expected: tuple[int, str]
) -> None:
    if b"get" in asked[:3]:
        asked = request("/v1/models", CLOSE, method="get")
    with caplog.at_level(logging.WARNING):
        async with parrot() as server:
            assert code_of(await answer_to(server, asked)) == expected
            await until(lambda: not connections(server))
    assert caplog.records == []


@pytest.mark.parametrize("header", ["Upgrade: websocket", "Sec-WebSocket-Version: 12"])
async def test_a_handshake_that_websockets_cannot_parse_is_answered(header: str) -> None:
    name = header.partition(":")[0]
    lines = [
        line
        for line in handshake().decode().split("\r\n")
        if not line.startswith(name) or name == "Upgrade"
    ]
    asked = "\r\n".join([*lines[:-2], header, "", ""]).encode()
    async with parrot() as server:
        answer = await answer_to(server, asked)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 426 "))


async def test_a_request_with_the_largest_headers_is_answered() -> None:
    async with parrot() as server:
        answer = await answer_to(server, request("/v1/models", "X: " + "a" * 32_000, CLOSE))
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_frames_sent_together_with_the_handshake_are_read() -> None:
    generate = json.dumps({"type": "generate", "prompt": "hello"}).encode()
    async with parrot() as server, dial(server) as line:
        await line.send(handshake() + frame(TEXT, generate)[:10])
        await line.send(frame(TEXT, generate)[10:])
        assert (await line.head()).startswith(b"HTTP/1.1 101 ")
        assert b'"type":"accepted"' in await line.reader.readuntil(b'"type":"done"')


# Time limits.


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (request("/v1/models")[:-2], (408, "request_timeout")),
        (
            request("/v1/completions", *JSON, method="POST", body=BODY[:-1]),
            (408, "request_timeout"),
        ),
        (
            request("/v1/completions", JSON[0], "Transfer-Encoding: chunked", method="POST"),
            (408, "request_timeout"),
        ),
        (handshake()[:-2], (408, "request_timeout")),
    ],
    ids=["headers", "body", "chunks", "handshake"],
)
async def test_an_incomplete_request_times_out(sent: bytes, expected: tuple[int, str]) -> None:
    async with parrot(header_timeout_s=0.05, body_timeout_s=0.05) as server:
        assert code_of(await answer_to(server, sent)) == expected
        await until(lambda: not connections(server))


async def test_a_silent_connection_is_closed_without_a_response() -> None:
    async with parrot(header_timeout_s=0.05) as server, dial(server) as line:
        assert await line.rest() == b""


@pytest.mark.slow
async def test_an_unread_body_has_a_time_limit_too() -> None:
    async with parrot(body_timeout_s=0.05) as server, dial(server) as line:
        await line.send(
            request("/v1/models", "Content-Length: 1000000", method="DELETE", body=b"x")
        )
        assert (await line.head()).startswith(b"HTTP/1.1 405 ")
        await line.rest()
        await until(lambda: not connections(server))


async def test_a_slow_response_does_not_time_out() -> None:
    """The limits apply to the client only."""
    gate = Gate()
    backend = scripted_backend(repeat_prompt, gate=gate)
    async with (
        stream_server(backend, gate=gate, header_timeout_s=0.05, body_timeout_s=0.05) as server,
        dial(server) as waiting,
        dial(server) as silent,
    ):
        await waiting.send(request("/v1/completions", *JSON, method="POST", body=BODY))
        assert await silent.rest() == b""  # so the time limit has passed
        gate.open()
        assert (await waiting.head()).startswith(b"HTTP/1.1 200 ")


# Connection limits.


async def test_silent_connections_evict_each_other() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(parrot(max_tcp_connections=16))
        lines = [await stack.enter_async_context(dial(server)) for _ in range(40)]
        answer = await answer_to(server, request("/v1/models", CLOSE))
        assert answer.startswith(b"HTTP/1.1 200 ")
        await until(lambda: len(connections(server)) <= 16)
        assert await lines[0].rest() == b""
        await lines[-1].send(request("/v1/models", CLOSE))
        assert (await lines[-1].head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "limits",
    [{"max_tcp_connections": 16}, {"max_tcp_connections_per_address": 16}],
    ids=["in all", "from one address"],
)
async def test_a_full_server_answers_health_checks_and_refuses_the_rest(
    limits: dict[str, int],
) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(parrot(**limits))
        sockets = [await stack.enter_async_context(server.connect()) for _ in range(16)]
        health = await answer_to(server, request("/health"))
        assert health.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in health.lower()
        refused = await answer_to(server, request("/v1/models"))
        assert code_of(refused) == (429, "too_many_connections")
        assert code_of(await answer_to(server, handshake())) == (429, "too_many_connections")
        await send(sockets[0], type="generate", prompt="hello")
        assert (await receive_stream(sockets[0]))[-1]["type"] == "done"
        await sockets[0].close()
        await until(lambda: len(connections(server)) < 16)
        answer = await answer_to(server, request("/v1/models", CLOSE))
        assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(server.server.config.connection_limiter) == 0  # type: ignore[attr-defined]


# Rates.


async def test_a_body_in_many_small_chunks_is_throttled() -> None:
    """Parsing 256 KiB of them at once would take half a second."""
    head = request("/v1/completions", JSON[0], "Transfer-Encoding: chunked", method="POST")
    async with parrot() as server, dial(server) as line:
        started_at = asyncio.get_running_loop().time()
        sending = asyncio.create_task(line.send(head + b"1\r\n \r\n" * 30_000))
        await until(lambda: bool(connections(server)))
        [connection] = connections(server)
        assert isinstance(connection, HttpProtocol)
        await until(lambda: connection._reader.is_throttled)  # a pause after the burst
        num_refilled = 1000 * (asyncio.get_running_loop().time() - started_at)
        assert 1024 <= connection.conn.num_chunks <= 1200 + num_refilled
        assert connection._reader.num_unread_bytes <= 2**18
        line.close()
        await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.slow
async def test_many_requests_on_one_connection_are_not_throttled() -> None:
    async with parrot() as server, dial(server) as line:
        for _ in range(30):
            await line.send(request("/livez", "Connection: keep-alive") * 50)
            for _ in range(50):
                await line.head()
        [connection] = connections(server)
        assert not connection._reader.is_throttled


async def test_a_large_body_is_throttled_but_read_to_its_end() -> None:
    async with (
        parrot(max_message_bytes=2**20, max_bytes_per_s=2**16) as server,
        dial(server) as line,
    ):
        head = request("/v1/completions", JSON[0], "Content-Length: 900000", method="POST")
        await line.send(head + b'{"prompt": "' + b"x" * (900_000 - 14) + b'"}')
        assert (await line.head()).startswith(
            b"HTTP/1.1 413 "
        )  # the prompt is too long, so it was read


async def test_accepted_sockets_have_the_listeners_keep_alive() -> None:
    async with parrot(stall_timeout_s=7, ping_interval_s=5) as server, dial(server):
        await until(lambda: bool(connections(server)))
        [connection] = connections(server)
        peer = connection.transport.get_extra_info("socket")
        options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT]
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert [peer.getsockopt(socket.IPPROTO_TCP, each) for each in options] == [5, 5, 22_000]


@pytest.mark.slow
async def test_an_event_stream_that_the_client_does_not_read_ends() -> None:
    """uvicorn alone would wait without a time limit."""
    body = json.dumps({"prompt": "x" * 1000, "max_tokens": 1000, "stream": True}).encode()
    asked = request(
        "/v1/completions", JSON[0], f"Content-Length: {len(body)}", method="POST", body=body
    )
    async with parrot(send_buffer_bytes=4096, stall_timeout_s=0.5) as server:
        with socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            narrow.connect(server.address)
            narrow.sendall(asked)
            await until(lambda: bool(connections(server)))
            await until(lambda: not connections(server))
            await server.until_idle()


async def test_a_lingering_close_does_not_delay_the_shutdown() -> None:
    async with parrot() as server, dial(server) as line, server.connect() as client:
        await line.send(b"nonsense\r\n\r\n")
        await line.head()
        await send(client, type="generate", prompt="hello")
        await receive_until(client, "done")
    assert server.server.lifespan.shutdown_event.is_set()


async def test_the_shutdown_does_not_wait_for_a_body(caplog: pytest.LogCaptureFixture) -> None:
    half = request("/v1/completions", *JSON, "Expect: 100-continue", method="POST")
    async with parrot() as server, dial(server) as line:
        await line.send(half)
        await line.head()
        server.server.should_exit = True
        assert code_of(await line.rest()) == (503, "shutting_down")
    assert "Traceback" not in caplog.text
