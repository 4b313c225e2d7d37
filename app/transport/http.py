"""uvicorn's HTTP protocol over h11, with an end for clients that ask for too much or never finish.

h11 and not httptools: httptools limits no header and joins its pieces quadratically (100 MiB held
the loop for 20 s), and loses the body of a request with `Upgrade: h2c`. h11 costs 130 µs more a
request and 5.5 µs more an event of a stream, about a third of what it costs in all; sockets, which
carry most tokens, pay at the handshake only.

What a client may cost before the application hears of it:

* Bytes are parsed in pieces and in turns (`Turns`), so the loop comes back to everyone else.
* Bytes and chunks of bodies are counted a second (`Allowance`); a client that sends more is read
  more slowly.
* Headers and bodies have a time limit each, and every connection has a place (`Door`).
* A client that takes nothing of an answer is cut off, as on a WebSocket.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.errors import ErrorInfo
from app.http.error_handlers import error_response
from app.transport.allowance import Allowance
from app.transport.config import TransportConfig
from app.transport.door import Place
from app.transport.farewell import Farewell
from app.transport.websocket import WebSocketProtocol

logger = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 32 * 1024
"""Of one request, its first line included; a little more may pass."""
_MAX_HANDSHAKE_LINE_BYTES = 8000
_MAX_HANDSHAKE_HEADERS = 100
"""websockets parses a handshake, and gives up without an answer at 8,192 bytes and 128 headers."""
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 256, 8192
"""Parsed without a look at anything: the more the fewer chunks come of it."""
_BYTES_AT_A_TIME = 64 * 1024
_CHUNKS_AT_A_TIME = 32
_DENSE_CHUNKS = 4
"""A piece of a body that comes in long chunks has fewer."""
_CHUNKS_PER_S = 1000.0
_BURST_CHUNKS = 1024.0
"""A megabyte in chunks of 1 kB."""
_HEALTH_PATHS = frozenset({"/health", "/livez", "/readyz", "/metrics"})

_NO_HTTP = ErrorInfo(code="malformed_http", message="This is not a valid HTTP request.")
_HEADERS_TOO_BIG = ErrorInfo(
    code="headers_too_big",
    message=f"The request's headers are bigger than {_MAX_HEADER_BYTES} bytes.",
)
_HANDSHAKE_TOO_BIG = ErrorInfo(
    code="headers_too_big",
    message=f"A WebSocket handshake may have {_MAX_HANDSHAKE_HEADERS} headers, each of "
    f"{_MAX_HANDSHAKE_LINE_BYTES} bytes.",
)
_HANDSHAKE_WITH_BODY = ErrorInfo(
    code="malformed_http", message="A WebSocket handshake must have no body."
)
_SHUTTING_DOWN = ErrorInfo(
    code="shutting_down", message="The server is shutting down.", retry_after_s=1.0
)
_TOO_MANY = ErrorInfo(
    code="too_many_connections",
    message="The server, or your address, has as many connections open as it may.",
    retry_after_s=1.0,
)


class _Connection(h11.Connection):
    """Counts chunks of bodies, and keeps what is wrong with a request for whoever answers it."""

    num_chunks = 0
    refusal: ErrorInfo | None = None

    def next_event(self) -> Any:
        if self.refusal is not None:
            return h11.NEED_DATA
        try:
            event = super().next_event()
            self.num_chunks += isinstance(event, h11.Data)
            return event
        except h11.RemoteProtocolError as error:
            is_size = error.error_status_hint == 431
            self.refusal = _HEADERS_TOO_BIG if is_size else _NO_HTTP
            return h11.NEED_DATA


class _Flow(FlowControl):
    """Leaves it to the protocol to read on, which may have more reasons to wait."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._on_resume()


class HttpProtocol(H11Protocol):
    """One connection until it ends or becomes a WebSocket."""

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
        self.conn: _Connection = _Connection(h11.SERVER, _MAX_HEADER_BYTES)
        self._place: Place | None = None
        self._unread = bytearray()
        self._piece_bytes = _MIN_PIECE_BYTES
        self._bytes = config.make_byte_allowance()
        self._chunks = Allowance(per_s=_CHUNKS_PER_S, max_burst=_BURST_CHUNKS)
        self._throttle: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._awaited: tuple[Any, RequestResponseCycle | None] | None = None
        self._farewell: Farewell | None = None
        self._is_upgraded = False

    # What uvicorn and the loop call.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self._on_flow_resumed)
        self._place = self._shared.door.admit(self, self.client[0] if self.client else None)
        if self._place is None:
            transport.abort()
            return
        if self._place.is_reserved:
            self.app = _HealthOnly(self.app)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._unread.clear()
        for timer in (self._throttle, self._deadline, self._stall):
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
        if self.timeout_keep_alive_task is not None:  # the first bytes of another request
            self._unset_keepalive_if_required()
            self._awaited = None
        self._unread += data
        self._run_parse()

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.refusal is not None and self._farewell is None and not self._is_upgraded:
            self._refuse(self.conn.refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        # uvicorn waits for room without limit.
        self._stall = self.loop.call_later(self._shared.settings.stall_timeout_s, self._on_stall)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_upgraded:
            self._watch()

    def shutdown(self) -> None:
        if self._farewell is not None:
            self.transport.abort()
        elif self.conn.their_state is h11.SEND_BODY:
            self._refuse(_SHUTTING_DOWN)
        else:
            super().shutdown()

    def evict(self) -> None:
        """Close at once: the place is given to another."""
        self.transport.abort()

    # Reading.

    def _parse(self) -> None:
        """Parse a part of what has come, and see to the rest."""
        if self._is_over():
            self._unread.clear()
            return
        if self._throttle is None:
            wait_s = self._parse_some()
            if self._is_over():
                return
            if wait_s:
                self._throttle = self.loop.call_later(wait_s, self._on_paid)
            self._watch()
        must_wait = self._throttle is not None or self.flow.read_paused
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
        num_bytes, num_chunks = 0, 0
        while (
            self._unread
            and num_bytes < _BYTES_AT_A_TIME
            and num_chunks < _CHUNKS_AT_A_TIME
            and not self.flow.read_paused
        ):
            piece = bytes(self._unread[: self._piece_bytes])
            del self._unread[: self._piece_bytes]
            chunks_before = self.conn.num_chunks
            self.conn.receive_data(piece)
            self.handle_events()
            if self._is_over():
                return 0.0
            num_chunks_of_piece = self.conn.num_chunks - chunks_before
            if num_chunks_of_piece > _DENSE_CHUNKS:
                self._piece_bytes = _MIN_PIECE_BYTES
            else:
                self._piece_bytes = min(4 * self._piece_bytes, _MAX_PIECE_BYTES)
            num_bytes += len(piece)
            num_chunks += num_chunks_of_piece
        now = self.loop.time()
        return max(
            self._bytes.take(num_bytes, now=now),
            self._chunks.take(num_chunks, now=now),
        )

    def _is_over(self) -> bool:
        is_closed = self._farewell is not None or self.transport.is_closing()
        return is_closed or self._is_upgraded

    def _on_paid(self) -> None:
        self._throttle = None
        self._run_parse()

    def _on_flow_resumed(self) -> None:
        # Not at once: uvicorn calls this in the middle of its own work.
        self.loop.call_soon(self._run_parse)

    # Waiting for the client.

    def _watch(self) -> None:
        """Begin the time limit of what the client has to send next, if that is something new."""
        state = self.conn.their_state
        awaited = (state, self.cycle)
        if self._place is None or self._awaited == awaited:
            return
        self._awaited = awaited
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        settings = self._shared.settings
        if state is h11.IDLE:
            self._place.wait()
            self._deadline = self.loop.call_later(settings.header_timeout_s, self._on_late_headers)
        elif state is h11.SEND_BODY:
            self._place.wait()
            self._deadline = self.loop.call_later(settings.body_timeout_s, self._on_late_body)
        else:
            self._place.serve()

    def _on_late_headers(self) -> None:
        if self._unread or self.conn.trailing_data[0]:
            self._refuse(_late("headers", self._shared.settings.header_timeout_s))
        else:
            self.transport.abort()  # it has said nothing

    def _on_late_body(self) -> None:
        self._refuse(_late("body", self._shared.settings.body_timeout_s))

    def _on_stall(self) -> None:
        logger.info(
            "a client took nothing for %g s and is cut off", self._shared.settings.stall_timeout_s
        )
        self.transport.abort()

    # Refusing.

    def _refuse(self, info: ErrorInfo) -> None:
        """Answer, if no answer has begun, and end the connection."""
        if self._is_over():
            return
        self._unset_keepalive_if_required()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_error(info)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
        self._unread.clear()
        self._farewell = Farewell(self.transport)

    def _send_error(self, info: ErrorInfo) -> None:
        body = json.dumps(info.to_openai()).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if info.retry_after_s is not None:
            headers.append((b"retry-after", b"1"))
        status = info.row.http_status
        response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
        data = h11.Data(data=b"" if is_head else body)
        for event in (response, data, h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    # WebSockets.

    def _should_upgrade(self) -> bool:
        """Return whether to become a WebSocket; any other wish to upgrade may be ignored.

        A server is free to (RFC 9110 §7.8), and has to in HTTP/1.0.
        """
        return (
            self.scope["method"] == "GET"
            and self.scope["http_version"] == "1.1"
            and self._get_upgrade() == b"websocket"
            and self._should_upgrade_to_ws()
        )

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        assert self._place is not None
        fault = _handshake_fault(event, self.headers)
        if self._place.is_reserved:
            fault = _TOO_MANY
        if fault is not None:
            self._refuse(fault)
            return
        lines = [b"GET " + event.target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self.headers if name != b"content-length"]
        early = self.conn.trailing_data[0] + bytes(self._unread)
        self._unread.clear()
        self._is_upgraded = True
        if self._deadline is not None:
            self._deadline.cancel()
        self.connections.discard(self)
        protocol_class = self.ws_protocol_class
        assert protocol_class is not None
        assert issubclass(protocol_class, WebSocketProtocol)
        protocol = protocol_class(self.config, self.server_state, self.app_state)
        place, self._place = self._place, None
        self.transport.set_protocol(protocol)
        protocol.take_over(
            self.transport, place, handshake=b"\r\n".join([*lines, b"", b""]), early=early
        )


class _HealthOnly:
    """Answers health checks, and tells everyone else that the server is full."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        is_health = scope["path"] in _HEALTH_PATHS
        app = self._app if is_health else error_response(_TOO_MANY)
        await app(scope, receive, send_closing)


def _handshake_fault(event: h11.Request, headers: list[tuple[bytes, bytes]]) -> ErrorInfo | None:
    """Return why a handshake cannot be read, if it cannot."""
    fields = dict(headers)
    if fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in fields:
        return _HANDSHAKE_WITH_BODY
    sizes = [len(event.target), *(len(name) + len(value) for name, value in headers)]
    if len(headers) > _MAX_HANDSHAKE_HEADERS or max(sizes) > _MAX_HANDSHAKE_LINE_BYTES:
        return _HANDSHAKE_TOO_BIG
    return None


def _late(what: str, timeout_s: float) -> ErrorInfo:
    message = f"The request's {what} did not arrive within {timeout_s:g} s."
    return ErrorInfo(code="request_timeout", message=message)
