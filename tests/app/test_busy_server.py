"""A busy server: one slow operation does not delay other clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from streaming.backends.scripted import ByteTokenizer, Gate, say, scripted_backend
from tests.app.conversation import text_of
from tests.app.sockets import StreamServer, receive_stream, send, stream_server
from tests.support import entered


class HeldTokenizer(ByteTokenizer):
    """Blocks on long prompts until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = Gate()
        self.entered = self._gate.entered

    def encode(self, text: str) -> list[int]:
        if len(text) > 1000:
            self._gate.wait()
        return super().encode(text)

    def open(self) -> None:
        self._gate.open()


PIECES = ["x" * 2**16] * 80
"""A prompt of 5 MiB."""


async def post_in_pieces(server: StreamServer, pieces: AsyncIterator[str]) -> int:
    """Post the pieces as one body; return the number of prompt tokens from the response."""
    async with httpx.AsyncClient(base_url=server.http_url, timeout=None) as calling:
        answer = await calling.post(
            "/v1/completions",
            content=(piece.encode() async for piece in pieces),
            headers={"content-type": "application/json"},
        )
    return int(answer.json()["usage"]["prompt_tokens"])


async def send_in_pieces(server: StreamServer, pieces: AsyncIterator[str]) -> int:
    """Send the pieces as one message; return the number of prompt tokens from its answer."""
    async with server.connect() as client:
        await client.send(pieces)
        return int((await receive_stream(client))[-1]["usage"]["prompt_tokens"])


@pytest.mark.pain(7)
@pytest.mark.parametrize("ask_in_pieces", [post_in_pieces, send_in_pieces])
async def test_a_prompt_of_5_mib_delays_no_other_client(
    ask_in_pieces: Callable[[StreamServer, AsyncIterator[str]], Awaitable[int]],
) -> None:
    tokenizer = HeldTokenizer()
    backend = replace(scripted_backend(say("hello"), max_model_len=10**7), tokenizer=tokenizer)
    async with (
        stream_server(backend, max_message_bytes=2**23) as server,
        httpx.AsyncClient(base_url=server.http_url, timeout=None) as calling,
        server.connect() as other,
    ):

        async def check_others() -> None:
            assert (await calling.get("/health")).json()["status"] == "ok"
            await send(other, type="generate", prompt="hi")
            assert text_of(await receive_stream(other)) == "hello"

        async def pieces() -> AsyncIterator[str]:
            yield '{"type": "generate", ' if ask_in_pieces is send_in_pieces else "{"
            yield '"prompt": "'
            for index, piece in enumerate(PIECES):
                yield piece
                if index % 10 == 5:
                    await check_others()
            yield '"}'

        asking = asyncio.ensure_future(ask_in_pieces(server, pieces()))
        try:
            await entered(tokenizer)
            await check_others()
            assert not asking.done()
        finally:
            tokenizer.open()
        assert await asking == len(PIECES) * len(PIECES[0])


class Computation(Gate):
    """Computes instead of waiting, and holds the interpreter lock meanwhile."""

    def wait(self) -> None:
        self.entered.release()
        while not self._is_open.is_set():
            sum(range(1000))


class PingedClient(ClientConnection):
    """Counts the server's pings; the server sends each after the previous one was answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pings = asyncio.Semaphore(0)

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings.release()
        super().process_event(event)


@pytest.mark.pain(8)
async def test_no_socket_misses_a_ping_while_the_model_computes() -> None:
    computing = Computation()
    backend = scripted_backend(say("hello"), gate=computing, max_num_seqs=16)
    async with (
        stream_server(backend, gate=computing, ping_interval_s=0.01) as server,
        AsyncExitStack() as stack,
    ):
        clients: list[PingedClient] = []
        for _ in range(16):
            connecting = server.connect(create_connection=PingedClient)
            client = await stack.enter_async_context(connecting)
            assert isinstance(client, PingedClient)
            clients.append(client)
        for client in clients:
            await send(client, type="generate", prompt="hi")
        await entered(computing)
        for client in clients:
            client.pings = asyncio.Semaphore(0)  # earlier pings do not count
        for client in clients:
            for _ in range(10):
                await client.pings.acquire()
        computing.open()
        texts = [text_of(await receive_stream(client)) for client in clients]
    assert texts == ["hello"] * 16
