"""One WebSocket connection: a reader task and a writer task around a sans-I/O protocol core.

The writer waits on a single event for all subscribed logs, reads each log in turn, and awaits the
socket after each read. This is the back-pressure policy: output that a client has not received yet
stays in the log, which keeps it anyway. A client that receives nothing for `stall_timeout_s` is
closed; its generations then enter their grace period and can be resumed.
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
from app.websocket.protocol.frames import Close, Frame, serialize
from app.websocket.protocol.parsing import Parsed

logger = logging.getLogger(__name__)

_MAX_UNSENT_FRAMES = 256
"""Frames queued for a client; with more, the connection stops reading from it."""
_CLOSE_TIMEOUT_S = 1.0
"""Time limit for writing the close frame to the socket's buffer."""

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")
EventT_co = TypeVar("EventT_co", covariant=True)
EventT_contra = TypeVar("EventT_contra", contravariant=True)


class Core(Protocol[CommandT, EventT_contra]):
    """The sans-I/O core of a conversation. `now` is in monotonic seconds."""

    @property
    def num_unsent(self) -> int:
        """Number of frames queued to be sent."""

    @property
    def next_timeout_at(self) -> float | None:
        """When to call `handle_timeout` next; None if no timeout is pending."""

    def receive_text(self, frame: str, *, now: float) -> None:
        """Receive a text frame."""

    def receive_bytes(self, frame: bytes, *, now: float) -> None:
        """Receive a binary frame."""

    def admit(self, frame: str | bytes, *, now: float) -> bool:
        """Count a frame; return True if the caller should parse it and pass on the result."""

    def parse(self, frame: str | bytes) -> Parsed[Any]:
        """Parse an admitted frame. Safe to call in any thread."""

    def receive_parsed(self, parsed: Parsed[Any], *, now: float) -> None:
        """Receive an admitted frame after `parse`."""

    def receive_events(self, key: str, events: Sequence[EventT_contra], *, now: float) -> None:
        """Receive the events that the reader subscribed as `key` has read."""

    def receive_drain(self) -> None:
        """Start to drain: close once nothing is open."""

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due at `now`."""

    def commands(self) -> list[CommandT | Close]:
        """Return the new commands in order, each once."""

    def frames_to_send(self) -> Iterator[Frame]:
        """Yield the queued frames in order, each once."""


class LogReader(Protocol[EventT_co]):
    """Reads a log from a cursor."""

    @property
    def is_done(self) -> bool:
        """Whether the end of the log has been read."""

    def read(self) -> Sequence[EventT_co]:
        """Return the new events without waiting."""


class ConnectionEnded(Exception):
    """Ends both tasks of a connection; caught in `Connection.run`."""


@dataclass(frozen=True, slots=True)
class _Subscription(Generic[EventT]):
    reader: LogReader[EventT]
    unsubscribe: ExitStack


class Connection(ABC, Generic[CommandT, EventT]):
    """Serves one accepted socket until either side closes it.

    A subclass executes the commands of its core.

    Args:
        websocket: accepted before `run`.
        core: protocol core of the dialect.
        settings: limits.
        caller: name of the authenticated caller.
        large: parses frames that are too large for the event loop.
        clock: returns monotonic seconds.
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
        self._caller = caller
        self._large = large or LargeMessages()
        self._core = core
        self._settings = settings
        self._clock = clock
        self._tasks = asyncio.TaskGroup()
        self._subscriptions: dict[str, _Subscription[EventT]] = {}
        self._wake = asyncio.Event()
        self._wake.set()  # the core may have frames to send before the first message arrives
        self._has_room = asyncio.Event()
        self._close: Close | None = None

    def drain(self) -> None:
        """Close once nothing is open. Called when the server shuts down."""
        self._core.receive_drain()
        self._wake.set()

    def evict(self) -> None:
        """Close now, to make room for another caller. Open generations can be resumed."""
        self._close = Close(1013, "closed to make room for another caller; try again later")
        self._wake.set()

    async def run(self) -> None:
        """Serve the socket until it is closed.

        On every exit path, both tasks have ended and all logs are unsubscribed. Generations without
        another subscriber are then in their grace period.
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
            for subscription in self._subscriptions.values():
                subscription.unsubscribe.close()
        if self._close is not None:
            await self._send_close(self._close)

    # The interface for subclasses.

    @abstractmethod
    def execute(self, command: CommandT) -> None:
        """Execute a command of the core without waiting; create a task for slow work."""

    def forget(self, key: str) -> None:
        """Drop the state kept for `key`. Called when its reader is done and the key is free."""

    def subscribe(self, key: str, reader: LogReader[EventT], unsubscribe: ExitStack) -> None:
        """Pass the reader's events to the core until the reader is done.

        Args:
            key: identifies the log in `receive_events`.
            reader: read each time the connection wakes up.
            unsubscribe: closed after the last event has been sent, or when the socket closes. A
                client that is slow to receive the end can therefore still resume.
        """
        self._subscriptions[key] = _Subscription(reader, unsubscribe)

    def notify(self) -> None:
        """Process new commands and wake the writer: the core has new input or a log has grown."""
        self._dispatch_commands()
        self._wake.set()

    # The reader task.

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
            # `receive` does not suspend while buffered messages are left. Yield after each one, so
            # that a single client cannot block the event loop.
            await asyncio.sleep(0)

    async def _receive(self, frame: str | bytes) -> None:
        if len(frame) > LARGE_INPUT_BYTES:
            # Frames stay in order: the next one is read only after this one has been received.
            if self._core.admit(frame, now=self._clock()):
                parsed = await self._large.run(self._caller, partial(self._core.parse, frame))
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

    # The writer task.

    async def _write(self) -> None:
        while True:
            await self._wait_for_wake()
            self._wake.clear()
            for key in tuple(self._subscriptions):
                with self._read_log(key):
                    await self._flush()
            self._core.handle_timeout(now=self._clock())
            self._dispatch_commands()
            await self._flush()
            if self._close is not None:
                raise ConnectionEnded
            if self._wake.is_set():
                # Sends do not suspend while the client receives fast enough. Yield here, so that
                # one client with a long log cannot block the event loop.
                await asyncio.sleep(0)

    async def _wait_for_wake(self) -> None:
        next_timeout_at = self._core.next_timeout_at
        timeout_s = None if next_timeout_at is None else max(0.0, next_timeout_at - self._clock())
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _read_log(self, key: str) -> ExitStack:
        """Pass new events to the core; return the stack to close after they have been sent."""
        subscription = self._subscriptions[key]
        events = subscription.reader.read()
        self._core.receive_events(key, events, now=self._clock())
        if not subscription.reader.is_done:
            return ExitStack()
        del self._subscriptions[key]
        self.forget(key)
        return subscription.unsubscribe

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
            logger.info("closing a client that received nothing for %g s", stall_timeout_s)
            self._close = Close(1008, f"nothing was read for {stall_timeout_s:g} s")
            raise ConnectionEnded from error
        except (WebSocketDisconnect, RuntimeError) as error:
            # RuntimeError: the server has closed the socket, for example after a missed pong or an
            # oversized frame, and its disconnect message has not been read yet.
            raise ConnectionEnded from error

    async def _send_close(self, close: Close) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._websocket.close(close.code, close.reason)
        except (TimeoutError, WebSocketDisconnect, RuntimeError) as error:
            logger.debug("could not send the close frame: %r", error)
