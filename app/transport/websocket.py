"""uvicorn's WebSocket protocol, with an end for clients that read nothing or send without measure.

uvicorn 0.54 lets a close frame wait for room in the send buffer, and then for the buffer to empty,
both without limit: a client that never reads would keep its socket and its buffer for ever, and
would never be told why nothing more comes.

It also parses whatever has come in one go, and answers each ping into a buffer without limit. Here
bytes are parsed in pieces and in turns (`Turns`), bytes and frames are counted a second
(`Allowance`), and only the last ping is answered, once the client reads.

It decides about compression by the path, where uvicorn has one switch for all. An event of the
Responses dialect repeats most of the one before: permessage-deflate takes a token's frame from 174
bytes to 14, for 3 µs. The frames of our own protocol are small as they are.
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

from app.transport.allowance import Allowance
from app.transport.config import TransportConfig
from app.transport.door import Place
from app.transport.farewell import Farewell

logger = logging.getLogger(__name__)

_DEFLATED_PATHS = frozenset({"/v1/responses"})
_DEFLATE = ServerPerMessageDeflateFactory(
    # About 47 kB for a connection; the widest windows take 132, for 13 bytes instead of 14.
    server_max_window_bits=12,
    client_max_window_bits=12,
    compress_settings={"memLevel": 5},
)

_MAX_FRAGMENTS = 1024
"""Frames of one message: a megabyte in pieces of 1 kB."""
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 512, 8192
"""Parsed without a look at anything: the more the fewer frames come of it."""
_BYTES_AT_A_TIME = 64 * 1024
_FRAMES_AT_A_TIME = 64
_DENSE_FRAMES = 4
"""A piece of a message in long frames has fewer."""
_FRAMES_PER_MESSAGE = 20
"""What a message may have in the long run, pings counted with them."""
_BURST_FRAMES = 2048
_BAD_HANDSHAKE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 36\r\nconnection: close\r\n\r\nThis is no valid WebSocket handshake."
)


class _Conversation(ServerProtocol):
    """Counts frames, and keeps one pong where websockets would write each.

    An endpoint may answer only the most recent ping (RFC 6455 §5.5.3).
    """

    num_frames = 0
    num_payload_bytes = 0
    _pong: Frame | None = None

    def recv_frame(self, frame: Frame) -> None:
        self.num_frames += 1
        self.num_payload_bytes += len(frame.data)
        super().recv_frame(frame)

    def send_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._pong = frame
        else:
            super().send_frame(frame)

    def take_pong(self) -> bytes:
        """Return the frame that answers the last ping; nothing if that has been taken."""
        pong, self._pong = self._pong, None
        return b"" if pong is None else pong.serialize(mask=False)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Closes for certain: what a client has not read `close_timeout` seconds later is dropped.

    Attributes:
        flood_timeout: seconds; a client that has sent more frames than it may for so long is
            closed.
    """

    flood_timeout = 5.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, TransportConfig)
        self._shared = config
        self.conn: _Conversation = _Conversation(
            max_size=config.ws_max_size, logger=logging.getLogger("uvicorn.error")
        )
        self._place: Place | None = None
        self._unread = bytearray()
        self._piece_bytes = _MIN_PIECE_BYTES
        self._bytes = config.make_byte_allowance()
        frames_per_s = _FRAMES_PER_MESSAGE * config.settings.max_messages_per_s
        self._frames = Allowance(per_s=frames_per_s, max_burst=max(frames_per_s, _BURST_FRAMES))
        self._flooded_since: float | None = None
        self._throttle: asyncio.TimerHandle | None = None
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None
        self._farewell: Farewell | None = None

    def take_over(
        self, transport: asyncio.Transport, place: Place, *, handshake: bytes, early: bytes
    ) -> None:
        """Go on with a connection that has been HTTP so far.

        Args:
            place: the connection's.
            handshake: the whole request.
            early: what has come after it.
        """
        self._place = place
        self.connection_made(transport)
        place.serve()
        self._handshake_timer = self.loop.call_later(
            self._shared.settings.header_timeout_s, self._on_late_handshake
        )
        self.conn.receive_data(handshake)
        if self.conn.handshake_exc is not None:
            logger.debug("a handshake is not valid: %r", self.conn.handshake_exc)
            self.handshake_complete = self.close_sent = True
            transport.write(_BAD_HANDSHAKE)
            self._farewell = Farewell(transport)
            return
        self.handle_events()
        self._unread += early
        self._run_parse()

    def evict(self) -> None:
        """Close at once; never called, as a WebSocket does not wait in the door's sense."""
        self.transport.abort()

    # What uvicorn and the loop call.

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unread.clear()
        for timer in (self._abort_timer, self._throttle, self._handshake_timer):
            if timer is not None:
                timer.cancel()
        if self._farewell is not None:
            self._farewell.end()
        if self._place is not None:
            self._place.leave()

    def data_received(self, data: bytes) -> None:
        if self._farewell is not None:
            self._farewell.discard(data)
            return
        self._unread += data
        self._run_parse()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send_pong()

    def handle_connect(self, event: Request) -> None:
        if event.path.partition("?")[0] in _DEFLATED_PATHS:
            self.conn.available_extensions = [_DEFLATE]
        super().handle_connect(event)

    def handle_cont(self, event: Frame) -> None:
        if self._farewell is not None:
            return
        if len(self.frames) >= _MAX_FRAGMENTS:
            self._fail(f"a message has more than {_MAX_FRAGMENTS} frames")
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Leave the answer to `_send_pong`, which is called when all that came is parsed."""

    def handle_parser_exception(self) -> None:
        assert self.conn.close_sent is not None
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.stop_keepalive()
        self._unread.clear()
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._farewell = Farewell(self.transport)
        self.close_timer = self._farewell.timer  # uvicorn closes at once where there is none

    async def receive(self) -> ASGIReceiveEvent:
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            # uvicorn would read on here, whatever has been read and waits to be parsed.
            self._run_parse()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()  # the last frame, and a small one: it may exceed the buffer's mark
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            # The handshake has been refused, which completes it. uvicorn notices only when the
            # connection is gone, and would log an error for an application that has returned.
            self.handshake_complete = True
        if self.handshake_complete and self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
            self._run_parse()
        elif message["type"] == "websocket.close":
            self._run_parse()  # the client's close frame may wait there

    def shutdown(self) -> None:
        if self._farewell is not None or (self.transport.is_closing() and not self.close_sent):
            # The client has closed, and not taken the rest. uvicorn would send it a second close
            # frame; that is an error, which ends the shutdown of all others.
            self.transport.abort()
        else:
            super().shutdown()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if not self.disconnected:
            self._abort_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    # Reading.

    def _parse(self) -> None:
        """Parse a part of what has come, and see to the rest."""
        if self._farewell is not None or self.transport.is_closing():
            self._unread.clear()
            return
        if self.handshake_complete and self._throttle is None:
            wait_s = self._parse_some()
            if self._farewell is not None or self.transport.is_closing():
                return
            self._send_pong()
            if wait_s:
                self._throttle = self.loop.call_later(wait_s, self._on_paid)
        must_wait = self._throttle is not None or self.read_paused or not self.handshake_complete
        if self._unread or must_wait:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
        if self._unread and not must_wait:
            self._shared.turns.go_on(self._parse, address=self._address)

    def _run_parse(self) -> None:
        self._shared.turns.run(self._parse, address=self._address)

    @property
    def _address(self) -> str:
        return self._place.address if self._place is not None else ""

    def _parse_some(self) -> float:
        """Return how many seconds to wait before more may be parsed."""
        num_bytes, num_frames = 0, 0
        num_payload_bytes = self.conn.num_payload_bytes
        while (
            self._unread
            and not self.read_paused
            and num_bytes < _BYTES_AT_A_TIME
            and num_frames < _FRAMES_AT_A_TIME
        ):
            piece = bytes(self._unread[: self._piece_bytes])
            del self._unread[: self._piece_bytes]
            frames_before = self.conn.num_frames
            self.conn.receive_data(piece)
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
            else:
                self.handle_events()
            if self._farewell is not None or self.transport.is_closing():
                return 0.0
            num_frames_of_piece = self.conn.num_frames - frames_before
            if num_frames_of_piece > _DENSE_FRAMES:
                self._piece_bytes = _MIN_PIECE_BYTES
            else:
                self._piece_bytes = min(4 * self._piece_bytes, _MAX_PIECE_BYTES)
            num_bytes += len(piece)
            num_frames += num_frames_of_piece
        now = self.loop.time()
        # Compressed or not, a byte of a message costs what it costs.
        num_bytes = max(num_bytes, self.conn.num_payload_bytes - num_payload_bytes)
        frames_wait_s = self._frames.take(num_frames, now=now)
        self._check_flood(is_flooding=frames_wait_s > 0, now=now)
        return max(frames_wait_s, self._bytes.take(num_bytes, now=now))

    def _check_flood(self, *, is_flooding: bool, now: float) -> None:
        if not is_flooding:
            if not self._unread:
                self._flooded_since = None
        elif self._flooded_since is None:
            self._flooded_since = now
        elif now - self._flooded_since > self.flood_timeout:
            self._fail("too many frames")

    def _fail(self, reason: str) -> None:
        logger.info("a client is closed: %s", reason)
        self.conn.fail(CloseCode.POLICY_VIOLATION, reason)
        self.handle_parser_exception()

    def _on_paid(self) -> None:
        self._throttle = None
        self._run_parse()

    def _on_late_handshake(self) -> None:
        self.transport.abort()

    def _send_pong(self) -> None:
        can_write = self.writable.is_set() and not (self.close_sent or self.transport.is_closing())
        if can_write and (pong := self.conn.take_pong()):
            self.transport.write(pong)
