"""`WS /v1/stream` for tests: in-process over a manual socket, and behind a real server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.server import Server, bind
from app.settings import Settings
from app.stream.socket import StreamConnection
from streaming import ANYONE, AsyncEngine, Backend
from streaming.backends.scripted import Gate
from tests.app.conversation import Frame
from tests.app.serving import make_app, until
from tests.support import tokenwire_threads


class ManualSocket:
    """A socket whose ASGI side the test drives: records sent frames, and can stop receiving.

    Args:
        takes: number of frames that the client receives before it stops, until `take_on`; None
            sets no limit.
        failure: raised by a send after the client has stopped receiving.
        close_failure: raised by the close.
    """

    def __init__(
        self,
        *,
        takes: int | None = None,
        failure: Exception | None = None,
        close_failure: Exception | None = None,
    ) -> None:
        self._takes = takes
        self._failure = failure
        self._close_failure = close_failure
        self._takes_on = asyncio.Event()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._sent = asyncio.Condition()
        self.num_read = 0  # frames that the server has read
        self.frames: list[Frame] = []
        self.close: tuple[int, str] | None = None
        scope = {"type": "websocket", "path": "/v1/stream", "headers": [], "subprotocols": []}
        self.websocket = WebSocket(scope, self._receive, self._send)

    def say(self, **message: Any) -> None:
        """Send a JSON message to the server."""
        self.put(text=json.dumps(message))

    def put(self, **message: Any) -> None:
        """Send a raw frame: `text` or `bytes`."""
        self._incoming.put_nowait({"type": "websocket.receive", **message})

    def leave(self) -> None:
        """Disconnect."""
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})

    def take_on(self) -> None:
        """Receive again after having stopped."""
        self._takes_on.set()

    async def until(self, is_enough: Callable[[list[Frame]], bool]) -> list[Frame]:
        """Wait until the received frames are enough, and return them."""
        async with self._sent:
            await self._sent.wait_for(lambda: is_enough(self.frames))
        return self.frames

    async def until_frame(self, kind: str, stream_id: str | None = None) -> Frame:
        """Wait for a frame of this type and return it."""
        await self.until(lambda _: bool(self.frames_of(kind, stream_id)))
        return self.frames_of(kind, stream_id)[0]

    def frames_of(self, kind: str, stream_id: str | None = None) -> list[Frame]:
        """Return the frames of this type so far."""
        return [
            frame
            for frame in self.frames
            if frame["type"] == kind and stream_id in (None, frame.get("id"))
        ]

    async def _receive(self) -> dict[str, Any]:
        message = await self._incoming.get()
        self.num_read += message["type"] == "websocket.receive"
        return message

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.accept":
            return
        if message["type"] == "websocket.close":
            if self._close_failure is not None:
                raise self._close_failure
            self.close = (message["code"], message["reason"])
            return
        if self._takes is not None and len(self.frames) >= self._takes:
            if self._failure is not None:
                raise self._failure
            await self._takes_on.wait()
        self.frames.append(json.loads(message["text"]))
        async with self._sent:
            self._sent.notify_all()


async def run_connection(
    client: ManualSocket,
    engine: AsyncEngine,
    *,
    clock: Callable[[], float] | None = None,
    caller: str = ANYONE,
    **settings: Any,
) -> None:
    """Serve a manual socket until it closes."""
    options: dict[str, Any] = {} if clock is None else {"clock": clock}
    connection = StreamConnection(
        client.websocket, engine=engine, caller=caller, settings=Settings(**settings), **options
    )
    await client.websocket.accept()
    await connection.run()


@dataclass(frozen=True)
class StreamServer:
    app: FastAPI
    engine: AsyncEngine
    server: Server
    address: tuple[str, int]

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def connect(self, path: str = "/v1/stream", **options: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.address[1]}{path}", proxy=None, **options)

    async def until_idle(self) -> None:
        """Wait until no generation is open."""
        await until(lambda: self.engine.stats.num_running + self.engine.stats.num_waiting == 0)

    async def until_left(self) -> None:
        """Wait until the application has no open socket."""
        await self.app.state.services.connections.wait_empty()


@asynccontextmanager
async def stream_server(
    backend: Backend,
    *,
    gate: Gate | None = None,
    send_buffer_bytes: int | None = None,
    prepare: Callable[[Server], None] = lambda _: None,
    **settings: Any,
) -> AsyncIterator[StreamServer]:
    """Serve over a real socket; at exit, assert that no thread, task or sequence is left.

    Args:
        backend: the model backend.
        gate: blocks the backend's runner; opened at exit, so that the engine can end.
        send_buffer_bytes: size of the operating system's send buffer of each connection.
        prepare: called with the server before it starts.
        settings: overrides of the default settings.
    """
    assert tokenwire_threads() == [], "an earlier test left a thread"
    tasks_before = asyncio.all_tasks()
    settings = {"drain_timeout_s": 0, **settings}
    app, engine = make_app(backend, **settings)
    server = Server(app, Settings(**settings))
    prepare(server)
    with bind("127.0.0.1", 0) as listener:
        if send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started)
            yield StreamServer(app, engine, server, listener.getsockname())
        finally:
            if gate is not None:
                gate.open()
            server.should_exit = True
            await serving
    assert tokenwire_threads() == []
    # pytest may tear a fixture down in another task than it set it up in.
    await until(lambda: asyncio.all_tasks() - {asyncio.current_task()} <= tasks_before)
    assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 0)
    assert not engine._subscribers._counts
    assert not engine._subscribers.in_grace
    assert not engine._engine.has_work


def bearer(key: str) -> dict[str, Any]:
    """Return options of `StreamServer.connect` that send an API key."""
    return {"additional_headers": {"authorization": f"Bearer {key}"}}


async def refused_handshake(
    server: StreamServer, **options: Any
) -> tuple[int, str, dict[str, str]]:
    """Connect, and return status, error code and headers of the refusal."""
    with pytest.raises(InvalidStatus) as caught:
        async with server.connect(**options):
            pass
    response = caught.value.response
    assert response.headers["content-type"] == "application/json"
    error = json.loads(response.body or b"")["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"], dict(response.headers)


async def send(client: ClientConnection, **message: Any) -> None:
    await client.send(json.dumps(message))


async def receive(client: ClientConnection) -> Frame:
    frame = json.loads(await client.recv())
    assert isinstance(frame, dict)
    return frame


async def receive_until(
    client: ClientConnection, *kinds: str, stream_id: str | None = None
) -> list[Frame]:
    """Return all frames up to the first whose type is one of `kinds`."""
    frames: list[Frame] = []
    while True:
        frames.append(frame := await receive(client))
        if frame["type"] in kinds and stream_id in (None, frame.get("id")):
            return frames


async def receive_stream(client: ClientConnection, stream_id: str | None = None) -> list[Frame]:
    """Return all frames up to the first `done` or `error`."""
    return await receive_until(client, "done", "error", stream_id=stream_id)


async def receive_until_closed(client: ClientConnection) -> list[Frame]:
    """Return all frames until the server closes the socket."""
    frames: list[Frame] = []
    with suppress(ConnectionClosed):
        while True:
            frames.append(await receive(client))
    return frames
