"""What every connection does, whatever is spoken on it."""

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
from app.websocket.protocol.commands import Close
from app.websocket.protocol.frames import Frame
from app.websocket.protocol.parsing import Parsed
from tests.app.serving import until
from tests.app.sockets import HandSocket
from tests.support import yield_to_loop


class EchoCore:
    """Says again what it hears; "bye" ends it, "count" asks for numbers, "bug" is one."""

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
        self._outbox.append({"type": "text", "heard": frame})

    def receive_bytes(self, frame: bytes, *, now: float) -> None:
        self._outbox.append({"type": "bytes", "heard": frame.decode()})

    def admit(self, frame: str | bytes, *, now: float) -> bool:
        return isinstance(frame, str)

    def parse(self, frame: str | bytes) -> Parsed[str]:
        return Parsed(f"{len(frame)} in {threading.current_thread().name.partition('_')[0]}")

    def receive_parsed(self, parsed: Parsed[str], *, now: float) -> None:
        assert parsed.message is not None
        self.receive_text(parsed.message, now=now)

    def receive_events(self, key: str, events: Sequence[int], *, now: float) -> None:
        self._outbox += [{"type": key, "heard": event} for event in events]

    def receive_drain(self) -> None:
        self._commands.append(Close(1001, "drained"))

    def handle_timeout(self, *, now: float) -> None:
        if self.next_timeout_at is not None and now >= self.next_timeout_at:
            self.next_timeout_at = None
            self._outbox.append({"type": "due"})

    def commands(self) -> list[str | Close]:
        commands, self._commands = self._commands, []
        return commands

    def frames_to_send(self) -> Iterator[Frame]:
        while self._outbox:
            yield self._outbox.pop(0)


class Numbers:
    """Counts to three, one at a time."""

    def __init__(self) -> None:
        self._next = 1
        self.has_been_left = False

    @property
    def is_done(self) -> bool:
        return self._next > 3

    def read(self) -> list[int]:
        self._next += 1
        return [self._next - 1]

    def leave(self) -> None:
        self.has_been_left = True


class EchoConnection(Connection[str, int]):
    def __init__(self, hand: HandSocket, core: EchoCore) -> None:
        super().__init__(hand.websocket, core, settings=Settings())
        self.numbers = Numbers()

    def execute(self, command: str) -> None:
        stack = ExitStack()
        stack.callback(self.numbers.leave)
        self.subscribe(command, self.numbers, stack)


async def until_counted(hand: HandSocket, count: int) -> None:
    await hand.until(lambda _: len(hand.shown("count")) >= count)


def serve(hand: HandSocket, **options: Any) -> tuple[EchoConnection, asyncio.Task[None]]:
    connection = EchoConnection(hand, EchoCore(**options))

    async def run() -> None:
        await hand.websocket.accept()
        await connection.run()

    return connection, asyncio.create_task(run())


async def test_a_large_frame_is_parsed_in_a_thread_and_keeps_its_place() -> None:
    hand = HandSocket()
    _, serving = serve(hand)
    for text in ("first", "x" * LARGE_INPUT_BYTES, "x" * (LARGE_INPUT_BYTES + 1), "last", "bye"):
        hand.put(text=text)
    await serving
    heard = [frame["heard"] for frame in hand.shown("text")]
    assert heard == ["first", "x" * LARGE_INPUT_BYTES, "65537 in asyncio", "last", "bye"]


async def test_text_and_bytes_reach_the_core_as_they_are() -> None:
    hand = HandSocket()
    _, serving = serve(hand)
    hand.put(text="a", bytes=None)
    hand.put(bytes=b"b")
    await hand.until(lambda frames: len(frames) == 2)
    hand.leave()
    await serving
    assert [frame["heard"] for frame in hand.frames] == ["a", "b"]
    assert hand.close is None


class NotesThreads(dict[str, Any]):
    """A frame that notes on which threads it is looked at."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.on_main_thread: list[bool] = []

    def items(self) -> Any:
        self.on_main_thread.append(threading.current_thread() is threading.main_thread())
        return super().items()


async def test_large_frames_are_written_on_another_thread_and_in_their_turn() -> None:
    hand = HandSocket()
    connection, serving = serve(hand)
    core = connection._core
    assert isinstance(core, EchoCore)
    large = NotesThreads(type="text", heard="a" * LARGE_OUTPUT_BYTES)
    small = NotesThreads(type="text", heard="b")
    core._outbox += [large, small]
    hand.put(text="c")
    await hand.until(lambda frames: len(frames) == 3)
    hand.leave()
    await serving
    assert [frame["heard"] for frame in hand.frames] == ["a" * LARGE_OUTPUT_BYTES, "b", "c"]
    assert large.on_main_thread[-1] is False
    assert False not in small.on_main_thread


async def test_a_close_comes_after_what_was_said_before_it() -> None:
    hand = HandSocket()
    _, serving = serve(hand)
    hand.put(text="a")
    hand.put(text="bye")
    await serving
    assert [frame["heard"] for frame in hand.frames] == ["a", "bye"]
    assert hand.close == (1000, "bye")


async def test_what_is_followed_is_read_after_each_wake_and_left_at_its_end() -> None:
    hand = HandSocket()
    connection, serving = serve(hand)
    hand.put(text="count")
    await hand.until_shown("text")
    for count in (2, 3):
        hand.put(text="more")
        await until_counted(hand, count)
    assert [frame["heard"] for frame in hand.shown("count")] == [1, 2, 3]
    assert connection.numbers.has_been_left
    hand.leave()
    await serving


async def test_what_is_followed_is_left_once_its_end_has_been_sent() -> None:
    hand = HandSocket(takes=5)
    connection, serving = serve(hand)
    hand.put(text="count")
    await hand.until_shown("text")
    hand.put(text="more")
    await until_counted(hand, 2)
    hand.put(text="more")
    await until(lambda: connection.numbers.is_done)
    await yield_to_loop()
    assert len(hand.shown("count")) == 2
    assert not connection.numbers.has_been_left
    hand.take_on()
    await until_counted(hand, 3)
    assert connection.numbers.has_been_left
    hand.leave()
    await serving


async def test_what_is_followed_is_left_with_the_socket_though_its_end_cannot_be_sent() -> None:
    hand = HandSocket(takes=5)
    connection, serving = serve(hand)
    hand.put(text="count")
    await hand.until_shown("text")
    hand.put(text="more")
    await until_counted(hand, 2)
    hand.put(text="more")
    await until(lambda: connection.numbers.is_done)
    hand.leave()
    await serving
    assert connection.numbers.has_been_left


async def test_what_is_followed_is_left_with_the_socket() -> None:
    hand = HandSocket()
    connection, serving = serve(hand)
    hand.put(text="count")
    await hand.until_shown("count")
    assert not connection.numbers.has_been_left
    hand.leave()
    await serving
    assert connection.numbers.has_been_left


async def test_the_core_is_told_the_time_though_nothing_comes_in() -> None:
    hand = HandSocket()
    _, serving = serve(hand, next_timeout_at=0.0)
    await hand.until_shown("due")
    hand.leave()
    await serving


async def test_drain_reaches_the_core() -> None:
    hand = HandSocket()
    connection, serving = serve(hand)
    connection.drain()
    await serving
    assert hand.close == (1001, "drained")


async def test_a_bug_closes_with_1011_and_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    hand = HandSocket()
    _, serving = serve(hand)
    hand.put(text="bug")
    await serving
    assert hand.close == (1011, "internal error")
    assert "ZeroDivisionError" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
