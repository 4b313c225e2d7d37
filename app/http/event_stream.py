"""Server-Sent Events, as in the HTML standard, § 9.2."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.http.disconnect import run_while_connected

logger = logging.getLogger(__name__)

PING = b": ping\n\n"
"""A comment: clients skip it, and what stands between sees a connection that lives."""
DONE = b"data: [DONE]\n\n"


def to_message(data: str) -> bytes:
    """Frame one line of JSON."""
    return f"data: {data}\n\n".encode()


def to_event_message(event: str, data: str) -> bytes:
    """Frame one line of JSON, with the name of its event."""
    return f"event: {event}\ndata: {data}\n\n".encode()


class EventStream(Response):
    """Sends the messages of `source` as they come, until they or the client end.

    While there is nothing to send, as for a request that waits or whose prompt is long, a comment
    is sent from time to time: what stands between does not take the connection for dead, and a
    client that has vanished is noticed.

    Args:
        source: entered when the answer starts and left however it ends.
        stall_timeout_s: a client that takes nothing for so long is given up.
        keep_alive_s: a comment is sent when nothing else was for so long.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AbstractContextManager[AsyncGenerator[bytes, None]],
        *,
        stall_timeout_s: float,
        keep_alive_s: float,
    ) -> None:
        self._source = source
        self._stall_timeout_s = stall_timeout_s
        self._keep_alive_s = keep_alive_s
        self._sending = asyncio.Lock()
        self._sent_at = 0.0
        self.status_code = 200
        self.background = None
        # nginx holds answers back unless told not to.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._source as messages:
            try:
                await run_while_connected(receive, self._send_all(messages, send))
            except* TimeoutError:
                logger.info("%s: the client stopped reading and was given up", scope["path"])
            except* (ClientDisconnect, OSError):  # OSError: some servers tell only who sends
                logger.debug("%s: the client left", scope["path"])

    async def _send_all(self, messages: AsyncGenerator[bytes, None], send: Send) -> None:
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await self._send(send, start)
        async with asyncio.TaskGroup() as tasks:
            keeping_alive = tasks.create_task(self._keep_alive(send))
            try:
                async with aclosing(messages):
                    async for body in messages:
                        await self._send_body(send, body)
            finally:
                keeping_alive.cancel()
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._sent_at + self._keep_alive_s - loop.time())
            if loop.time() >= self._sent_at + self._keep_alive_s:
                await self._send_body(send, PING)

    async def _send_body(self, send: Send, body: bytes) -> None:
        await self._send(send, {"type": "http.response.body", "body": body, "more_body": True})

    async def _send(self, send: Send, message: Message) -> None:
        async with self._sending, asyncio.timeout(self._stall_timeout_s):
            await send(message)
        self._sent_at = asyncio.get_running_loop().time()
