from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from app.transport.lingering_close import LingeringClose
from tests.app.serving import until

ANSWER = b"HTTP/1.1 431 \r\n\r\n"


class Refusing(asyncio.Protocol):
    """Answers and closes at the first bytes, whatever else the client sends."""

    def __init__(self) -> None:
        self.linger_s = 1000.0
        self.lingering: LingeringClose | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.lingering is None:
            self.transport.write(ANSWER)
            self.lingering = LingeringClose(self.transport, linger_s=self.linger_s)
        self.lingering.discard(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True
        if self.lingering is not None:
            self.lingering.cancel()


Connected = tuple[Refusing, asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def connected() -> AsyncIterator[Connected]:
    """A connection: the server's protocol, and the client's two streams."""
    protocols: list[Refusing] = []

    def accept() -> Refusing:
        protocols.append(Refusing())
        return protocols[-1]

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await until(lambda: bool(protocols))
    yield protocols[0], reader, writer
    writer.transport.abort()
    server.close()
    await server.wait_closed()


async def test_the_answer_arrives_although_the_client_goes_on_sending(connected: Connected):
    protocol, reader, writer = connected
    for _ in range(10):
        writer.write(b"x" * 2**16)
        await writer.drain()
    assert await reader.read() == ANSWER  # to its end: the sending side is closed
    writer.close()
    await until(lambda: protocol.is_lost)
    assert protocol.lingering is not None
    assert protocol.lingering.timer.cancelled()


async def test_a_client_that_sends_too_much_is_aborted(connected: Connected):
    protocol, _, writer = connected
    num_sent = 0
    with suppress(ConnectionError):
        while num_sent < 2**26:
            writer.write(b"x" * 2**16)
            await writer.drain()
            num_sent += 2**16
    assert protocol.is_lost
    assert num_sent < 2**26


async def test_a_client_that_stays_is_aborted_after_the_time_limit(connected: Connected):
    protocol, _, writer = connected
    protocol.linger_s = 0.01
    writer.write(b"x")
    await until(lambda: protocol.is_lost)


async def test_a_transport_that_closes_already_is_only_timed(connected: Connected):
    protocol, _, _ = connected
    protocol.transport.close()
    lingering = LingeringClose(protocol.transport)
    assert not lingering.timer.cancelled()
    lingering.cancel()
    assert lingering.timer.cancelled()
