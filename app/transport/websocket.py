"""uvicorn's WebSocket protocol, with limits on clients that read nothing or send too much.

What it changes:

* Close: uvicorn 0.54 waits without a time limit for room in the send buffer before it writes a
  close frame, and then for the buffer to empty. A client that never reads would keep its socket and
  buffer for ever. Here the connection is aborted `close_timeout` seconds after the handler returns.
* Read: uvicorn parses everything that has arrived at once. `ThrottledReader` parses in pieces and
  in turns, and limits bytes and frames a second.
* Pings: uvicorn answers each into an unlimited buffer. Here only the last ping is answered, when
  the client reads.
* Compression: uvicorn has one switch for all paths. Here it is on for the Responses dialect only,
  whose events repeat most of the previous one: permessage-deflate reduces a token's frame from 174
  bytes to 14, for 3 µs. The frames of `/v1/stream` are small already.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from app.transport.config import TransportConfig
from app.transport.connection_limiter import ConnectionSlot
from app.transport.lingering_close import LingeringClose
from app.transport.throttled_reader import Parsed, ThrottledReader
from app.transport.token_bucket import TokenBucket

logger = logging.getLogger(__name__)

_DEFLATED_PATHS = frozenset({"/v1/responses"})
_DEFLATE = ServerPerMessageDeflateFactory(
    # About 47 kB a connection; the widest windows take 132 kB, for 13 bytes a frame instead of 14.
    server_max_window_bits=12,
    client_max_window_bits=12,
    compress_settings={"memLevel": 5},
)

_MAX_FRAGMENTS = 1024
"""Frames of one message: 1 MiB in pieces of 1 KiB."""
_MIN_PIECE_BYTES = 512
_MAX_FRAMES_PER_TURN = 64
_FRAMES_PER_MESSAGE = 20
"""Average number of frames that a message may have, pings included."""
_BURST_FRAMES = 2048
_INVALID_HANDSHAKE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 40\r\nconnection: close\r\n\r\nThis is not a valid WebSocket handshake."
)


class _CountingProtocol(ServerProtocol):
    """Counts frames and payload bytes, and keeps only the last pong to be sent.

    An endpoint may answer only the most recent ping (RFC 6455 §5.5.3).
    """

    num_frames = 0
    num_payload_bytes = 0
    _pong: Frame | None = None

    def recv_frame(self, frame: Frame) -> None:
        """Count the frame and handle it; its payload is decompressed already."""
        self.num_frames += 1
        self.num_payload_bytes += len(frame.data)
        super().recv_frame(frame)

    def send_frame(self, frame: Frame) -> None:
        """Send the frame, or keep it if it is a pong."""
        if frame.opcode is Opcode.PONG:
            self._pong = frame
        else:
            super().send_frame(frame)

    def take_pong(self) -> bytes:
        """Return the frame that answers the last ping; empty if it has been taken already."""
        pong, self._pong = self._pong, None
        return b"" if pong is None else pong.serialize(mask=False)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection, from its handshake until it is closed.

    Attributes:
        flood_timeout: seconds; a client that exceeds the frame rate for longer is closed.
    """

    flood_timeout = 5.0
    _reader: ThrottledReader

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, TransportConfig)
        self._transport_config = config
        self.conn: _CountingProtocol = _CountingProtocol(
            max_size=config.ws_max_size, logger=logging.getLogger("uvicorn.error")
        )
        self._slot: ConnectionSlot | None = None
        self._flooding_since: float | None = None
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None
        self._lingering: LingeringClose | None = None

    def take_over(
        self, transport: asyncio.Transport, slot: ConnectionSlot, *, handshake: bytes, early: bytes
    ) -> None:
        """Continue a connection that has been HTTP so far.

        Args:
            transport: the connection's.
            slot: the connection's; released when it is lost.
            handshake: the whole request.
            early: bytes that arrived after the handshake.
        """
        config = self._transport_config
        frames_per_s = _FRAMES_PER_MESSAGE * config.settings.max_messages_per_s
        self._slot = slot
        self._reader = ThrottledReader(
            self,
            transport,
            queue=config.parsing_queue,
            address=slot.address,
            byte_bucket=config.make_byte_bucket(),
            item_bucket=TokenBucket(per_s=frames_per_s, max_burst=max(frames_per_s, _BURST_FRAMES)),
            min_piece_bytes=_MIN_PIECE_BYTES,
            max_items_per_turn=_MAX_FRAMES_PER_TURN,
        )
        self.connection_made(transport)
        slot.mark_serving()
        self._handshake_timer = self.loop.call_later(
            config.settings.header_timeout_s, self._on_handshake_timeout
        )
        self.conn.receive_data(handshake)
        if self.conn.handshake_exc is not None:
            logger.debug("refusing an invalid WebSocket handshake: %r", self.conn.handshake_exc)
            self.handshake_complete = self.close_sent = True
            transport.write(_INVALID_HANDSHAKE)
            self._lingering = LingeringClose(transport)
            return
        self.handle_events()
        self._reader.feed(early)

    # Called by uvicorn and the event loop.

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the slot and cancel all timers."""
        super().connection_lost(exc)
        self._reader.close()
        for timer in (self._abort_timer, self._handshake_timer):
            if timer is not None:
                timer.cancel()
        if self._lingering is not None:
            self._lingering.cancel()
        if self._slot is not None:
            self._slot.release()

    def data_received(self, data: bytes) -> None:
        """Pass the data to the reader, or discard it during a lingering close."""
        if self._lingering is not None:
            self._lingering.discard(data)
        else:
            self._reader.feed(data)

    def resume_writing(self) -> None:
        """Resume sending; answer the last ping now that there is room."""
        super().resume_writing()
        self._send_pong()

    def handle_connect(self, event: Request) -> None:
        """Offer compression where the path calls for it, and start the application."""
        if event.path.partition("?")[0] in _DEFLATED_PATHS:
            self.conn.available_extensions = [_DEFLATE]
        super().handle_connect(event)

    def handle_cont(self, event: Frame) -> None:
        """Add a continuation frame to the message, up to `_MAX_FRAGMENTS`."""
        if self._lingering is not None:
            return
        if len(self.frames) >= _MAX_FRAGMENTS:
            self._fail(f"a message has more than {_MAX_FRAGMENTS} frames")
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Do nothing: `_send_pong` answers the last ping at the end of a turn."""

    def handle_parser_exception(self) -> None:
        """Send the close frame of a protocol error and begin a lingering close."""
        assert self.conn.close_sent is not None
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.stop_keepalive()
        self._reader.clear()
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._lingering = LingeringClose(self.transport)
        self.close_timer = self._lingering.timer  # without one, uvicorn closes at once

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next message; resume reading when all have been taken."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            # uvicorn would resume the transport here, even if buffered bytes wait to be parsed.
            self._reader.schedule()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        """Send a message of the application."""
        if message["type"] == "websocket.close":
            self.writable.set()  # a small, last frame: it may exceed the high-water mark
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            # The application has refused the handshake, which completes it. uvicorn would set this
            # only when the connection is lost, and log an error for the application's return.
            self.handshake_complete = True
        if self.handshake_complete and self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
            self._reader.schedule()
        elif message["type"] == "websocket.close":
            self._reader.schedule()  # the client's close frame may be in the buffer

    def shutdown(self) -> None:
        """Close with code 1012 (service restart), or abort a connection that is closing already."""
        if self._lingering is not None or (self.transport.is_closing() and not self.close_sent):
            # The client has closed and reads nothing more. uvicorn would send a second close
            # frame, and the error from that would end the shutdown of all other connections.
            self.transport.abort()
        else:
            super().shutdown()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Give the client `close_timeout` seconds to read the rest."""
        super().on_task_complete(task)
        if not self.disconnected:
            self._abort_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    # Called by the connection limiter and the reader.

    def evict(self) -> None:
        """Close at once; never called, because the slot of a WebSocket is always serving."""
        self.transport.abort()

    def parse_piece(self, piece: bytes) -> Parsed:
        """Parse the bytes and handle their events; frames are the items."""
        frames_before = self.conn.num_frames
        payload_bytes_before = self.conn.num_payload_bytes
        self.conn.receive_data(piece)
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
        else:
            self.handle_events()
        return Parsed(
            num_items=self.conn.num_frames - frames_before,
            num_payload_bytes=self.conn.num_payload_bytes - payload_bytes_before,
        )

    def is_finished(self) -> bool:
        """Return whether the connection is closing."""
        return self._lingering is not None or self.transport.is_closing()

    def is_paused(self) -> bool:
        """Return whether the handshake or the application's receive queue must be waited for."""
        return self.read_paused or not self.handshake_complete

    def on_turn_parsed(self, *, items_wait_s: float) -> None:
        """Close a client that floods; answer the last ping."""
        self._check_flood(is_flooding=items_wait_s > 0)
        if not self.is_finished():
            self._send_pong()

    def _check_flood(self, *, is_flooding: bool) -> None:
        now = self.loop.time()
        if not is_flooding:
            if not self._reader.num_unread_bytes:
                self._flooding_since = None
        elif self._flooding_since is None:
            self._flooding_since = now
        elif now - self._flooding_since > self.flood_timeout:
            self._fail("too many frames")

    def _fail(self, reason: str) -> None:
        logger.info("closing a WebSocket: %s", reason)
        self.conn.fail(CloseCode.POLICY_VIOLATION, reason)
        self.handle_parser_exception()

    def _on_handshake_timeout(self) -> None:
        self.transport.abort()

    def _send_pong(self) -> None:
        can_write = self.writable.is_set() and not (self.close_sent or self.transport.is_closing())
        if can_write and (pong := self.conn.take_pong()):
            self.transport.write(pong)
