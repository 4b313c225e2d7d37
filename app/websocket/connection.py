"""One `WS /v1/stream` socket: a reader and a writer around a `StreamProtocol`.

The writer waits on one event for all that it follows, reads each log in turn, and awaits the socket
after each read. That is the whole slow-client policy: what a client has not taken yet stays in the
log, where it is anyway, and comes as one larger delta. A client that takes nothing for too long is
closed; its generations are in their grace then and can be resumed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import assert_never

from fastapi import WebSocket, WebSocketDisconnect

from app.errors import ErrorInfo
from app.handlers import INTERNAL_ERROR
from app.protocol.commands import (
    CancelGeneration,
    Close,
    ResumeGeneration,
    StartGeneration,
)
from app.protocol.frames import serialize
from app.protocol.stream import StreamProtocol
from app.settings import Settings
from streaming import AsyncEngine, Generation, Reader
from streaming.errors import StreamingError

logger = logging.getLogger(__name__)

_MAX_UNSENT_FRAMES = 256
"""Answers that a client has not taken; beyond them it is not listened to."""
_CLOSE_TIMEOUT_S = 1.0
"""Time for a close frame to get into the socket's buffer."""


class _ConnectionEnded(Exception):
    """Ends both tasks of a connection; never leaves this module."""


@dataclass(frozen=True, slots=True)
class _Followed:
    reader: Reader
    leave: ExitStack


class StreamConnection:
    """Serves one accepted socket until either side closes it.

    Args:
        websocket: accepted before `run`.
        engine: generates.
        caller: whose generations these are.
        settings: limits.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        websocket: WebSocket,
        *,
        engine: AsyncEngine,
        caller: str,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._websocket = websocket
        self._engine = engine
        self._caller = caller
        self._settings = settings
        self._clock = clock
        self._protocol = StreamProtocol(
            owner=caller,
            token_text=engine.tokenizer.token_text,
            max_streams=settings.max_streams,
            max_messages_per_s=settings.max_messages_per_s,
        )
        self._tasks = asyncio.TaskGroup()
        self._followed: dict[str, _Followed] = {}
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._close: Close | None = None

    def drain(self) -> None:
        """Close once no stream is open; called when the server goes away."""
        self._protocol.receive_drain()
        self._obey()
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
        except* _ConnectionEnded:
            pass
        except* Exception:
            logger.exception("a connection to /v1/stream failed")
            self._close = Close(1011, "internal error")
        finally:
            for followed in self._followed.values():
                followed.leave.close()
        if self._close is not None:
            await self._send_close(self._close)

    # The reader.

    async def _read(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise _ConnectionEnded
            text = message.get("text")
            if text is not None:
                self._protocol.receive_text(text, now=self._clock())
            else:
                self._protocol.receive_bytes(now=self._clock())
            self._obey()
            self._wake.set()
            if self._protocol.num_unsent > _MAX_UNSENT_FRAMES:
                self._has_room.clear()
                await self._has_room.wait()
            # Messages that have arrived together are received without waiting, so one client could
            # keep the loop to itself.
            await asyncio.sleep(0)

    def _obey(self) -> None:
        for command in self._protocol.commands():
            match command:
                case StartGeneration():
                    # A task of its own: a long tokenisation must not hold up a cancel beside it.
                    self._tasks.create_task(self._submit(command))
                case ResumeGeneration():
                    self._resume(command)
                case CancelGeneration(stream_id):
                    self._engine.cancel(self._followed[stream_id].reader.generation)
                case Close():
                    self._close = command
                case _:
                    assert_never(command)

    async def _submit(self, command: StartGeneration) -> None:
        try:
            generation = await self._engine.submit(command.request)
        except StreamingError as error:
            self._protocol.receive_refused(command.stream_id, ErrorInfo.of(error))
        except Exception:
            logger.exception("a request could not be submitted")  # and only this one fails
            self._protocol.receive_refused(command.stream_id, INTERNAL_ERROR)
        else:
            # No await since the engine has it: it is never without a follower.
            self._follow(command.stream_id, generation, every_token=command.every_token)
        self._obey()
        self._wake.set()

    def _resume(self, command: ResumeGeneration) -> None:
        try:
            generation = self._engine.find(command.generation_id, owner=self._caller)
            self._follow(
                command.stream_id,
                generation,
                after=command.after,
                every_token=command.every_token,
            )
        except StreamingError as error:
            self._protocol.receive_refused(command.stream_id, ErrorInfo.of(error))

    def _follow(
        self, stream_id: str, generation: Generation, *, after: int = -1, every_token: bool
    ) -> None:
        with ExitStack() as stack:
            reader = stack.enter_context(
                self._engine.follow(
                    generation,
                    after=after,
                    every_token=every_token,
                    on_wake=self._wake.set,
                    grace_s=self._settings.disconnect_grace_s,
                )
            )
            self._followed[stream_id] = _Followed(reader, stack.pop_all())
        self._protocol.receive_accepted(stream_id, generation)

    # The writer.

    async def _write(self) -> None:
        while True:
            await self._wait_woken()
            self._wake.clear()
            for stream_id in tuple(self._followed):
                self._read_log(stream_id)
                await self._flush()
            self._protocol.release_due(now=self._clock())
            self._obey()
            await self._flush()
            if self._close is not None:
                raise _ConnectionEnded

    async def _wait_woken(self) -> None:
        due_at = self._protocol.due_at
        timeout_s = None if due_at is None else max(0.0, due_at - self._clock())
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _read_log(self, stream_id: str) -> None:
        followed = self._followed[stream_id]
        events = followed.reader.read()
        self._protocol.receive_events(stream_id, events, now=self._clock())
        if followed.reader.is_done:
            del self._followed[stream_id]
            followed.leave.close()

    async def _flush(self) -> None:
        for frame in self._protocol.frames_to_send():
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
            raise _ConnectionEnded from error
        except (WebSocketDisconnect, RuntimeError) as error:
            # RuntimeError: the server closed the socket by itself, as it does when a ping is not
            # answered or a frame is too big, and has not told us yet.
            raise _ConnectionEnded from error

    async def _send_close(self, close: Close) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._websocket.close(close.code, close.reason)
        except (TimeoutError, WebSocketDisconnect, RuntimeError) as error:
            logger.debug("a close frame could not be sent: %r", error)
