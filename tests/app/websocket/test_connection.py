"""The connection of every dialect, over a core that echoes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from app.json.json_text import LARGE_OUTPUT_BYTES
from app.json.large_json import LARGE_INPUT_BYTES
from app.settings import Settings
from app.websocket.connection import Connection
from app.websocket.protocol.frames import Close, Frame
from app.websocket.protocol.parsing import Parsed
from tests.app.serving import until
from tests.app.sockets import ManualSocket
from tests.support import yield_to_loop


class EchoCore:
    """Echoes frames; "bye" closes, "count" subscribes to numbers, "bug" raises."""

    def __init__(self, *, next_timeout_at: float | None = None) -> None:
        self.next_timeout_at = next_timeout_at
        self._commands: list[str | Close] = []
        self._outbox: list[Frame] = []

    @property
    def num_unsent(self) -> int:
        return len(self._outbox)

    def receive_text(self, frame: str, *, now: float) -> None:
        match frame:
            case "bye":
                self._commands.append(Close(1000, "bye"))
            case "count":
                self._commands.append("count")
            case "bug":
                raise ZeroDivisionError("a bug")
        self._outbox.append({"type": "text", "echo": frame})

    def receive_bytes(self, frame: bytes, *, now: float) -> None:
        self._outbox.append({"type": "bytes", "echo": frame.decode()})

    def admit(self, frame: str | bytes, *, now: float) -> bool:
        return isinstance(frame, str)

    def parse(self, frame: str | bytes) -> Parsed[str]:
        return Parsed(f"{len(frame)} in {threading.current_thread().name.partition('_')[0]}")

    def receive_parsed(self, parsed: Parsed[str], *, now: float) -> None:
        assert parsed.message is not None
        self.receive_text(parsed.message, now=now)

    def receive_events(self, key: str, events: Sequence[int], *, now: float) -> None:
        self._outbox += [{"type": key, "echo": event} for event in events]

    def receive_drain(self) -> None:
        self._commands.append(Close(1001, "drained"))

    def handle_timeout(self, *, now: float) -> None:
        if self.next_timeout_at is not None and now >= self.next_timeout_at:
            self.next_timeout_at = None
            self._outbox.append({"type": "timeout"})

    def commands(self) -> list[str | Close]:
        commands, self._commands = self._commands, []
        return commands

    def frames_to_send(self) -> Iterator[Frame]:
        while self._outbox:
            yield self._outbox.pop(0)


class Numbers:
    """A log reader that reads 1, 2, 3, one at a time."""

    def __init__(self) -> None:
        self._next = 1
        self.is_unsubscribed = False

    @property
    def is_done(self) -> bool:
        return self._next > 3

    def read(self) -> list[int]:
        self._next += 1
        return [self._next - 1]

    def unsubscribe(self) -> None:
        self.is_unsubscribed = True


class EchoConnection(Connection[str, int]):
    def __init__(self, client: ManualSocket, core: EchoCore) -> None:
        super().__init__(client.websocket, core, settings=Settings())
        self.numbers = Numbers()

    def execute(self, command: str) -> None:
        stack = ExitStack()
        stack.callback(self.numbers.unsubscribe)
        self.subscribe(command, self.numbers, stack)


async def until_counted(client: ManualSocket, count: int) -> None:
    await client.until(lambda _: len(client.frames_of("count")) >= count)


def serve(client: ManualSocket, **options: Any) -> tuple[EchoConnection, asyncio.Task[None]]:
    connection = EchoConnection(client, EchoCore(**options))

    async def run() -> None:
        await client.websocket.accept()
        await connection.run()

    return connection, asyncio.create_task(run())


async def test_large_frames_are_parsed_in_a_thread_and_keep_their_order() -> None:
    client = ManualSocket()
    _, serving = serve(client)
    for text in ("first", "x" * LARGE_INPUT_BYTES, "x" * (LARGE_INPUT_BYTES + 1), "last", "bye"):
        client.put(text=text)
    await serving
    echoed = [frame["echo"] for frame in client.frames_of("text")]
    assert echoed == ["first", "x" * LARGE_INPUT_BYTES, "65537 in asyncio", "last", "bye"]


async def test_text_and_bytes_reach_the_core_unchanged() -> None:
    client = ManualSocket()
    _, serving = serve(client)
    client.put(text="a", bytes=None)
    client.put(bytes=b"b")
    await client.until(lambda frames: len(frames) == 2)
    client.leave()
    await serving
    assert [frame["echo"] for frame in client.frames] == ["a", "b"]
    assert client.close is None


class ThreadRecorder(dict[str, Any]):
    """A frame that records on which thread it is serialized."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.on_main_thread: list[bool] = []

    def items(self) -> Any:
        self.on_main_thread.append(threading.current_thread() is threading.main_thread())
        return super().items()


async def test_large_frames_are_serialized_in_a_thread_and_keep_their_order() -> None:
    client = ManualSocket()
    connection, serving = serve(client)
    core = connection._core
    assert isinstance(core, EchoCore)
    large = ThreadRecorder(type="text", echo="a" * LARGE_OUTPUT_BYTES)
    small = ThreadRecorder(type="text", echo="b")
    core._outbox += [large, small]
    client.put(text="c")
    await client.until(lambda frames: len(frames) == 3)
    client.leave()
    await serving
    assert [frame["echo"] for frame in client.frames] == ["a" * LARGE_OUTPUT_BYTES, "b", "c"]
    assert large.on_main_thread[-1] is False
    assert False not in small.on_main_thread


async def test_frames_before_a_close_are_sent() -> None:
    client = ManualSocket()
    _, serving = serve(client)
    client.put(text="a")
    client.put(text="bye")
    await serving
    assert [frame["echo"] for frame in client.frames] == ["a", "bye"]
    assert client.close == (1000, "bye")


async def test_a_log_is_read_after_each_wake_and_unsubscribed_at_its_end() -> None:
    client = ManualSocket()
    connection, serving = serve(client)
    client.put(text="count")
    await client.until_frame("text")
    for count in (2, 3):
        client.put(text="more")
        await until_counted(client, count)
    assert [frame["echo"] for frame in client.frames_of("count")] == [1, 2, 3]
    assert connection.numbers.is_unsubscribed
    client.leave()
    await serving


async def test_a_log_is_unsubscribed_after_its_end_has_been_sent() -> None:
    client = ManualSocket(takes=5)
    connection, serving = serve(client)
    client.put(text="count")
    await client.until_frame("text")
    client.put(text="more")
    await until_counted(client, 2)
    client.put(text="more")
    await until(lambda: connection.numbers.is_done)
    await yield_to_loop()
    assert len(client.frames_of("count")) == 2
    assert not connection.numbers.is_unsubscribed
    client.take_on()
    await until_counted(client, 3)
    assert connection.numbers.is_unsubscribed
    client.leave()
    await serving


async def test_a_log_is_unsubscribed_if_its_end_cannot_be_sent() -> None:
    client = ManualSocket(takes=5)
    connection, serving = serve(client)
    client.put(text="count")
    await client.until_frame("text")
    client.put(text="more")
    await until_counted(client, 2)
    client.put(text="more")
    await until(lambda: connection.numbers.is_done)
    client.leave()
    await serving
    assert connection.numbers.is_unsubscribed


async def test_a_log_is_unsubscribed_when_the_socket_closes() -> None:
    client = ManualSocket()
    connection, serving = serve(client)
    client.put(text="count")
    await client.until_frame("count")
    assert not connection.numbers.is_unsubscribed
    client.leave()
    await serving
    assert connection.numbers.is_unsubscribed


async def test_timeouts_are_handled_without_input() -> None:
    client = ManualSocket()
    _, serving = serve(client, next_timeout_at=0.0)
    await client.until_frame("timeout")
    client.leave()
    await serving


async def test_drain_reaches_the_core() -> None:
    client = ManualSocket()
    connection, serving = serve(client)
    connection.drain()
    await serving
    assert client.close == (1001, "drained")


async def test_an_internal_error_closes_with_1011_and_logs_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = ManualSocket()
    _, serving = serve(client)
    client.put(text="bug")
    await serving
    assert client.close == (1011, "internal error")
    assert "ZeroDivisionError" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_an_evicted_connection_closes_with_1013() -> None:
    client = ManualSocket()
    connection, serving = serve(client)
    client.put(text="count")
    await client.until_frame("count")
    connection.evict()
    await serving
    assert client.close == (1013, "closed to make room for another caller; try again later")
    assert connection.numbers.is_unsubscribed
