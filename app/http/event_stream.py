"""Server-sent events (HTML standard, § 9.2): framing, keep-alive and disconnects."""

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
"""A comment, which clients skip; it keeps proxies from closing an idle connection."""
DONE = b"data: [DONE]\n\n"


def to_message(data: str) -> bytes:
    """Return an event whose data is one line of JSON."""
    return f"data: {data}\n\n".encode()


def to_event_message(event: str, data: str) -> bytes:
    """Return an event with a name, whose data is one line of JSON."""
    return f"event: {event}\ndata: {data}\n\n".encode()


class EventStream(Response):
    """Sends the messages of `source` until it ends or the client disconnects.

    While there is nothing to send, because the request is queued or its prompt is long, comments
    are sent. They keep proxies from closing the connection and reveal a client that has vanished.

    Args:
        source: entered when the response starts and left when it ends, in whatever way.
        stall_timeout_s: seconds without a read after which the response is aborted.
        keep_alive_s: seconds without a message after which a comment is sent.
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
        # nginx buffers responses without the second header.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; a stalled or disconnected client ends it without an error."""
        with self._source as messages:
            try:
                await run_while_connected(receive, self._send_all(messages, send))
            except* TimeoutError:
                logger.info("%s: response aborted, the client stopped reading", scope["path"])
            except* (ClientDisconnect, OSError):
                # OSError: some servers report a disconnect only from `send`.
                logger.debug("%s: the client disconnected", scope["path"])

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
