"""One WebSocket: a reader and a writer around the core of whatever is spoken on it.

The writer waits on one event for all that it follows, reads each log in turn, and awaits the socket
after each read. That is the whole slow-client policy: what a client has not taken yet stays in the
log, where it is anyway. A client that takes nothing for too long is closed; its generations are in
their grace then and can be resumed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from fastapi import WebSocket, WebSocketDisconnect

from app.json.json_text import COMPACT, is_large, to_json
from app.json.large_json import LARGE_INPUT_BYTES, LargeMessages
from app.settings import Settings
from app.websocket.protocol.commands import Close
from app.websocket.protocol.frames import Frame, serialize
from app.websocket.protocol.parsing import Parsed

logger = logging.getLogger(__name__)

_MAX_UNSENT_FRAMES = 256
"""Answers that a client has not taken; beyond them it is not listened to."""
_CLOSE_TIMEOUT_S = 1.0
"""Time for a close frame to get into the socket's buffer."""

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")
EventT_co = TypeVar("EventT_co", covariant=True)
EventT_contra = TypeVar("EventT_contra", contravariant=True)


class Core(Protocol[CommandT, EventT_contra]):
    """The sans-I/O side of a conversation; time is passed in as monotonic seconds."""

    @property
    def num_unsent(self) -> int:
        """Frames that wait to be sent."""

    @property
    def next_timeout_at(self) -> float | None:
        """When `handle_timeout` has something to do, if nothing comes in before."""

    def receive_text(self, frame: str, *, now: float) -> None: ...

    def receive_bytes(self, frame: bytes, *, now: float) -> None: ...

    def admit(self, frame: str | bytes, *, now: float) -> bool:
        """Begin to receive a frame in steps; return whether it is to be parsed and received."""

    def parse(self, frame: str | bytes) -> Parsed[Any]:
        """Return what the frame is, in any thread."""

    def receive_parsed(self, parsed: Parsed[Any], *, now: float) -> None: ...

    def receive_events(self, key: str, events: Sequence[EventT_contra], *, now: float) -> None:
        """Take what a reader has read that is followed as `key`."""

    def receive_drain(self) -> None: ...

    def handle_timeout(self, *, now: float) -> None: ...

    def commands(self) -> list[CommandT | Close]: ...

    def frames_to_send(self) -> Iterator[Frame]: ...


class LogReader(Protocol[EventT_co]):
    """Something with a cursor, read by a connection whenever it may have more."""

    @property
    def is_done(self) -> bool:
        """Whether the end has been read."""

    def read(self) -> Sequence[EventT_co]:
        """Return what is new; never waits."""


class ConnectionEnded(Exception):
    """Ends both tasks of a connection; never leaves this package."""


@dataclass(frozen=True, slots=True)
class _Followed(Generic[EventT]):
    reader: LogReader[EventT]
    leave: ExitStack


class Connection(ABC, Generic[CommandT, EventT]):
    """Serves one accepted socket until either side closes it; a subclass obeys its core.

    Args:
        websocket: accepted before `run`.
        core: speaks.
        settings: limits.
        caller: who calls.
        large: parses what is too large for the loop.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        websocket: WebSocket,
        core: Core[CommandT, EventT],
        *,
        settings: Settings,
        caller: str = "",
        large: LargeMessages | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._websocket = websocket
        self._sender = caller
        self._large = large or LargeMessages()
        self._core = core
        self._settings = settings
        self._clock = clock
        self._tasks = asyncio.TaskGroup()
        self._followed: dict[str, _Followed[EventT]] = {}
        self._wake = asyncio.Event()
        self._wake.set()  # the core may have something to say before it hears anything
        self._has_room = asyncio.Event()
        self._close: Close | None = None

    def drain(self) -> None:
        """Close once nothing is open; called when the server goes away."""
        self._core.receive_drain()
        self._wake.set()

    def give_way(self) -> None:
        """Close now, for a caller with fewer sockets; what is open can be resumed."""
        self._close = Close(1013, "a caller with fewer sockets needs the place; try again later")
        self._wake.set()

    async def run(self) -> None:
        """Serve the socket.

        However this is left, nothing of the connection is left behind, and the generations that it
        alone followed are in their grace.
        """
        try:
            async with self._tasks as tasks:
                tasks.create_task(self._read())
                tasks.create_task(self._write())
        except* ConnectionEnded:
            pass
        except* Exception:
            logger.exception("a connection to %s failed", self._websocket.url.path)
            self._close = Close(1011, "internal error")
        finally:
            for followed in self._followed.values():
                followed.leave.close()
        if self._close is not None:
            await self._send_close(self._close)

    # What a subclass does, and does it with.

    @abstractmethod
    def execute(self, command: CommandT) -> None:
        """Do what the core wants, without waiting: what takes time is a task of its own."""

    def forget(self, key: str) -> None:
        """Take that a reader has come to its end: its key may name another one from now on."""

    def subscribe(self, key: str, reader: LogReader[EventT], leave: ExitStack) -> None:
        """Give the core what the reader reads, until its end.

        Leave once all of it is in the socket, so that a client that is slow to take the end can
        still come back; or at the socket's end.
        """
        self._followed[key] = _Followed(reader, leave)

    def notify(self) -> None:
        """Look again: the core has been told something, or a log has grown."""
        self._dispatch_commands()
        self._wake.set()

    # The reader.

    async def _read(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise ConnectionEnded
            text = message.get("text")
            await self._receive(message["bytes"] if text is None else text)
            self.notify()
            if self._core.num_unsent > _MAX_UNSENT_FRAMES:
                self._has_room.clear()
                await self._has_room.wait()
            # Messages that have arrived together are received without waiting, so one client could
            # keep the loop to itself.
            await asyncio.sleep(0)

    async def _receive(self, frame: str | bytes) -> None:
        if len(frame) > LARGE_INPUT_BYTES:
            # The next frame is not read before this one is received, so their order is kept.
            if self._core.admit(frame, now=self._clock()):
                parsed = await self._large.run(self._sender, partial(self._core.parse, frame))
                self._core.receive_parsed(parsed, now=self._clock())
        elif isinstance(frame, str):
            self._core.receive_text(frame, now=self._clock())
        else:
            self._core.receive_bytes(frame, now=self._clock())

    def _dispatch_commands(self) -> None:
        for command in self._core.commands():
            if isinstance(command, Close):
                self._close = command
            else:
                self.execute(command)

    # The writer.

    async def _write(self) -> None:
        while True:
            await self._wait_woken()
            self._wake.clear()
            for key in tuple(self._followed):
                with self._read_log(key):
                    await self._flush()
            self._core.handle_timeout(now=self._clock())
            self._dispatch_commands()
            await self._flush()
            if self._close is not None:
                raise ConnectionEnded
            if self._wake.is_set():
                # A client that takes one part of a long log after the other without waiting could
                # keep the loop to itself.
                await asyncio.sleep(0)

    async def _wait_woken(self) -> None:
        next_timeout_at = self._core.next_timeout_at
        timeout_s = None if next_timeout_at is None else max(0.0, next_timeout_at - self._clock())
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _read_log(self, key: str) -> ExitStack:
        """Give the core what is new; return what to leave once it has been sent."""
        followed = self._followed[key]
        events = followed.reader.read()
        self._core.receive_events(key, events, now=self._clock())
        if not followed.reader.is_done:
            return ExitStack()
        del self._followed[key]
        self.forget(key)
        return followed.leave

    async def _flush(self) -> None:
        for frame in self._core.frames_to_send():
            if is_large(frame):
                await self._send(await asyncio.to_thread(to_json, frame, encoder=COMPACT))
            else:
                await self._send(serialize(frame))
        self._has_room.set()

    async def _send(self, frame: str) -> None:
        stall_timeout_s = self._settings.stall_timeout_s
        try:
            async with asyncio.timeout(stall_timeout_s):
                await self._websocket.send_text(frame)
        except TimeoutError as error:
            logger.info("a client took nothing for %g s and is closed", stall_timeout_s)
            self._close = Close(1008, f"nothing was read for {stall_timeout_s:g} s")
            raise ConnectionEnded from error
        except (WebSocketDisconnect, RuntimeError) as error:
            # RuntimeError: the server closed the socket by itself, as it does when a ping is not
            # answered or a frame is too big, and has not told us yet.
            raise ConnectionEnded from error

    async def _send_close(self, close: Close) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._websocket.close(close.code, close.reason)
        except (TimeoutError, WebSocketDisconnect, RuntimeError) as error:
            logger.debug("a close frame could not be sent: %r", error)
