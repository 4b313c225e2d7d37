"""Runs the application over the scripted backend: in process, by hand, or on a real server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.server import bind
from app.settings import Settings
from streaming import AsyncEngine, Backend
from streaming.backends.scripted import Gate
from tests.support import TIMEOUT_S, tokenwire_threads
from tests.watching_loop import until as until

KEY = {"authorization": "Bearer secret"}


def make_app(backend: Backend, **settings: Any) -> tuple[FastAPI, AsyncEngine]:
    """Return the application and its engine, which starts with the application."""
    resolved = Settings(**settings)
    engine = AsyncEngine(backend, resolved.to_engine_config())
    return create_app(resolved, engine), engine


@asynccontextmanager
async def serving(
    backend: Backend, *, gate: Gate | None = None, **settings: Any
) -> AsyncIterator[tuple[FastAPI, AsyncEngine]]:
    """Run the application; at exit, assert that no thread, task or sequence is left.

    Args:
        backend: of the engine.
        gate: blocks the backend's runner; opened at exit, so that the engine can end.
        settings: of the application.
    """
    assert tokenwire_threads() == [], "an earlier test left a thread"
    tasks_before = asyncio.all_tasks()
    app, engine = make_app(backend, **settings)
    async with asyncio.timeout(TIMEOUT_S), app.router.lifespan_context(app):
        try:
            yield app, engine
        finally:
            if gate is not None:
                gate.open()
    assert tokenwire_threads() == []
    assert asyncio.all_tasks() == tasks_before
    assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 0)
    assert not engine._subscribers._counts


@asynccontextmanager
async def client_of(
    backend: Backend, *, gate: Gate | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application and yield a client that calls it in process."""
    async with serving(backend, gate=gate, **settings) as (app, _), client(app) as calling:
        yield calling


def client(app: FastAPI) -> httpx.AsyncClient:
    """Return a client that calls the application in process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


class Call:
    """One POST request without an HTTP client: records messages, and can disconnect at any time.

    Args:
        app: an ASGI application.
        path: of the request.
        body: sent as JSON; a list of bytes is sent as chunks.
        takes: messages that the client reads before it stops until `read_on`; None reads all.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        path: str,
        body: dict[str, Any] | Sequence[bytes],
        *,
        takes: int | None = None,
    ) -> None:
        self._app = app
        self._path = path
        self._chunks = [json.dumps(body).encode()] if isinstance(body, dict) else list(body)
        self._takes = takes
        self._left = asyncio.Event()
        self._reads_on = asyncio.Event()
        self._sent = asyncio.Condition()
        self.num_received = 0
        self.messages: list[dict[str, Any]] = []

    async def __call__(self) -> None:
        """Make the request."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        await self._app(scope, self._receive, self._send)

    def leave(self) -> None:
        """Disconnect."""
        self._left.set()

    def read_on(self) -> None:
        """Read all further messages."""
        self._reads_on.set()

    async def until_shown(self, text: bytes) -> None:
        """Wait until the body contains the text."""
        await self._until(lambda: text in self.body)

    async def until_more_than(self, num_messages: int) -> None:
        """Wait until the application has sent more than so many messages."""
        await self._until(lambda: len(self.messages) > num_messages)

    @property
    def status(self) -> int | None:
        """The status of the response; None before it starts."""
        return self.messages[0]["status"] if self.messages else None

    @property
    def body(self) -> bytes:
        """The body so far."""
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_complete(self) -> bool:
        """Whether the response has ended."""
        return bool(self.messages) and self.messages[-1].get("more_body") is False

    async def _until(self, is_enough: Callable[[], bool]) -> None:
        async with self._sent:
            await self._sent.wait_for(is_enough)

    async def _receive(self) -> dict[str, Any]:
        if self.num_received < len(self._chunks):
            self.num_received += 1
            is_last = self.num_received == len(self._chunks)
            chunk = self._chunks[self.num_received - 1]
            return {"type": "http.request", "body": chunk, "more_body": not is_last}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._takes is not None and len(self.messages) >= self._takes:
            await self._reads_on.wait()
        self.messages.append(message)
        async with self._sent:
            self._sent.notify_all()


def sse(text: str) -> list[str]:
    """Return the data of each event of a complete event stream, without comments."""
    assert text.endswith("\n\n"), "the last event is incomplete"
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith(("data: ", ": ")) and "\n" not in block for block in blocks), blocks
    return [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]


def chunks(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a complete event stream, which must end with `[DONE]`."""
    *data, done = sse(text)
    assert done == "[DONE]"
    return [json.loads(each) for each in data]


@contextmanager
def live(backend: Backend, **settings: Any) -> Iterator[str]:
    """Serve on a real socket from a thread; yield the server's address."""
    app, _ = make_app(backend, **settings)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="websockets-sansio")
    server = uvicorn.Server(config)
    with bind("127.0.0.1", 0) as listener:
        listener.listen()  # connections are queued from here on, until the server accepts them
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
    assert tokenwire_threads() == []
