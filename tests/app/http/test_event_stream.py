from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.http.event_stream import PING, EventStream, to_message
from tests.app.serving import Call, until


class Source:
    """Yields messages, ends or waits for ever, and logs when it is entered, closed and left."""

    def __init__(self, *messages: bytes, ends: bool = True) -> None:
        self._messages = messages
        self._ends = ends
        self.log: list[str] = []

    @contextmanager
    def open(self) -> Iterator[AsyncGenerator[bytes, None]]:
        self.log.append("entered")
        yield self._generate()
        self.log.append("left")

    async def _generate(self) -> AsyncGenerator[bytes, None]:
        try:
            for message in self._messages:
                yield message
            if not self._ends:
                await asyncio.Event().wait()
        finally:
            self.log.append("closed")


def call_of(
    source: Source,
    *,
    takes: int | None = None,
    stall_timeout_s: float = 10,
    keep_alive_s: float = 10,
) -> Call:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        stream = EventStream(
            source.open(), stall_timeout_s=stall_timeout_s, keep_alive_s=keep_alive_s
        )
        await stream(scope, receive, send)

    return Call(app, "/", [], takes=takes)


def test_an_event_is_one_block():
    assert to_message('{"a":"é"}') == 'data: {"a":"é"}\n\n'.encode()


async def test_messages_are_sent_unchanged():
    source = Source(b"one", b"two")
    call = call_of(source)
    await call()
    assert [message.get("body") for message in call.messages] == [None, b"one", b"two", b""]
    assert call.is_complete
    assert source.log == ["entered", "closed", "left"]


@pytest.mark.pain(10)
@pytest.mark.parametrize("num_sent", [0, 1])
async def test_a_disconnect_closes_the_source(num_sent: int):
    source = Source(*[b"one"] * num_sent, ends=False)
    call = call_of(source)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call())
        await call.until_more_than(num_sent)
        call.leave()
    assert not call.is_complete
    assert source.log == ["entered", "closed", "left"]


@pytest.mark.parametrize("takes", [0, 1, 2])
async def test_a_stalled_client_closes_the_source(takes: int):
    source = Source(b"one", b"two")
    call = call_of(source, takes=takes, stall_timeout_s=0.01)
    await call()
    assert len(call.messages) == takes
    assert source.log[0] == "entered"
    assert source.log[-1] == "left"


async def test_a_disconnect_reported_by_send_closes_the_source():
    source = Source(b"one")

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(_: Any) -> None:
        raise OSError("gone")

    stream = EventStream(source.open(), stall_timeout_s=10, keep_alive_s=10)
    await stream({"type": "http", "path": "/"}, receive, send)
    assert source.log == ["entered", "left"]


async def test_an_idle_stream_is_kept_alive_by_comments():
    source = Source(b"one", ends=False)
    call = call_of(source, keep_alive_s=0.01)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call())
        await call.until_shown(b"one" + PING * 3)
        call.leave()
    assert source.log == ["entered", "closed", "left"]


async def test_a_comment_reveals_a_stalled_client():
    source = Source(b"one", ends=False)
    call = call_of(source, takes=2, stall_timeout_s=0.01, keep_alive_s=0.01)
    await call()
    assert call.body == b"one"
    assert source.log == ["entered", "closed", "left"]


async def test_a_comment_that_cannot_be_sent_ends_the_stream():
    source = Source(ends=False)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message.get("body"):
            raise OSError("gone")

    stream = EventStream(source.open(), stall_timeout_s=10, keep_alive_s=0.01)
    await stream({"type": "http", "path": "/"}, receive, send)
    assert source.log == ["entered", "closed", "left"]


async def test_a_comment_waits_for_the_message_before_it():
    stream = EventStream(Source(b"one", b"two").open(), stall_timeout_s=10, keep_alive_s=0.01)
    call = Call(stream, "/", [], takes=1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call())
        await until(lambda: bool(stream._sending._waiters))
        call.read_on()
    assert call.is_complete
    assert call.body.replace(PING, b"") == b"onetwo"


async def test_an_error_of_the_source_is_raised():
    class Broken(Source):
        async def _generate(self) -> AsyncGenerator[bytes, None]:
            yield b"one"
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        await call_of(Broken())()
    assert raised.group_contains(ZeroDivisionError)
