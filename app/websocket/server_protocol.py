"""uvicorn's WebSocket protocol, with an end for clients that stay connected and read nothing.

uvicorn 0.54 lets a close frame wait for room in the send buffer, and then for the buffer to empty,
both without limit: a client that never reads would keep its socket and its buffer for ever, and
would never be told why nothing more comes. Give this class to uvicorn as `ws`.

It also decides about compression by the path, where uvicorn has one switch for all. An event of the
Responses dialect repeats most of the one before: permessage-deflate takes a token's frame from 174
bytes to 14, for 3 µs. The frames of our own protocol are small as they are.
"""

from __future__ import annotations

import asyncio

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request

_DEFLATED_PATHS = frozenset({"/v1/responses"})
_DEFLATE = ServerPerMessageDeflateFactory(
    # About 47 kB for a connection; the widest windows take 132, for 13 bytes instead of 14.
    server_max_window_bits=12,
    client_max_window_bits=12,
    compress_settings={"memLevel": 5},
)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Closes for certain: what a client has not read `close_timeout` seconds later is dropped."""

    _abort_timer: asyncio.TimerHandle | None = None

    def handle_connect(self, event: Request) -> None:
        if event.path.partition("?")[0] in _DEFLATED_PATHS:
            self.conn.available_extensions = [_DEFLATE]
        super().handle_connect(event)

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()  # the last frame, and a small one: it may exceed the buffer's mark
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            # The handshake has been refused, which completes it. uvicorn notices only when the
            # connection is gone, and would log an error for an application that has returned.
            self.handshake_complete = True

    def shutdown(self) -> None:
        if self.transport.is_closing() and not self.close_sent:
            # The client has closed, and not taken the rest. uvicorn would send it a second close
            # frame; that is an error, which ends the shutdown of all others.
            self.transport.abort()
        else:
            super().shutdown()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if not self.disconnected:
            self._abort_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._abort_timer is not None:
            self._abort_timer.cancel()
