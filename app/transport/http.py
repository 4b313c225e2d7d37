"""uvicorn's HTTP protocol over h11, with limits on what a client may cost.

h11 rather than httptools: httptools limits no header, joins body pieces quadratically (100 MiB held
the event loop for 20 s), and loses the body of a request with `Upgrade: h2c`. h11 costs 130 µs more
a request and 5.5 µs more an event of a stream, about a third of the total. WebSockets, which carry
most tokens, pay this at the handshake only.

Limits that apply before the application sees a request:

* `ThrottledReader` parses bytes in pieces and in turns, and limits bytes and body chunks a second.
* Headers and bodies have a time limit each.
* Every connection holds a slot of the `ConnectionLimiter`.
* A client that stops reading its response is disconnected, as on a WebSocket.
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
from app.transport.config import TransportConfig
from app.transport.connection_limiter import ConnectionSlot
from app.transport.h11_connection import H11Connection
from app.transport.lingering_close import LingeringClose
from app.transport.throttled_reader import Parsed, ThrottledReader
from app.transport.token_bucket import TokenBucket
from app.transport.websocket import WebSocketProtocol

logger = logging.getLogger(__name__)

_MAX_HANDSHAKE_LINE_BYTES = 8000
_MAX_HANDSHAKE_HEADERS = 100
"""Below the limits of websockets, which parses the handshake again and closes without a response
beyond 8,192 bytes a line or 128 headers."""
_MIN_PIECE_BYTES = 256
_MAX_CHUNKS_PER_TURN = 32
_CHUNKS_PER_S = 1000.0
_BURST_CHUNKS = 1024.0
"""1 MiB in chunks of 1 KiB."""
_HEALTH_PATHS = frozenset({"/health", "/livez", "/readyz"})

_HANDSHAKE_TOO_BIG = ErrorInfo(
    code="headers_too_big",
    message=f"A WebSocket handshake may have at most {_MAX_HANDSHAKE_HEADERS} headers of at most "
    f"{_MAX_HANDSHAKE_LINE_BYTES} bytes each.",
)
_HANDSHAKE_WITH_BODY = ErrorInfo(
    code="malformed_http", message="A WebSocket handshake must have no body."
)
_SHUTTING_DOWN = ErrorInfo(
    code="shutting_down", message="The server is shutting down.", retry_after_s=1.0
)
_TOO_MANY_CONNECTIONS = ErrorInfo(
    code="too_many_connections",
    message="Too many connections are open, in all or from your address; try again later.",
    retry_after_s=1.0,
)


class _Flow(FlowControl):
    """Lets the protocol decide when to resume reading: it may have other reasons to wait."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        """Clear the pause of the request's body and notify the protocol."""
        if self.read_paused:
            self.read_paused = False
            self._on_resume()


class HttpProtocol(H11Protocol):
    """One HTTP connection, until it closes or becomes a WebSocket."""

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
        self._settings = config.settings
        self.conn: H11Connection = H11Connection()
        self._slot: ConnectionSlot | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._awaited: tuple[Any, RequestResponseCycle | None] | None = None
        self._lingering: LingeringClose | None = None
        self._is_upgraded = False

    # Called by uvicorn and the event loop.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection slot, or close at once where there is none."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self._on_flow_resumed)
        config = self._transport_config
        self._slot = config.connection_limiter.admit(self, self.client[0] if self.client else None)
        self._reader = ThrottledReader(
            self,
            transport,
            queue=config.parsing_queue,
            address=self._slot.address if self._slot is not None else "",
            byte_bucket=config.make_byte_bucket(),
            item_bucket=TokenBucket(per_s=_CHUNKS_PER_S, max_burst=_BURST_CHUNKS),
            min_piece_bytes=_MIN_PIECE_BYTES,
            max_items_per_turn=_MAX_CHUNKS_PER_TURN,
        )
        if self._slot is None:
            transport.abort()
            return
        if self._slot.is_reserved:
            self.app = _HealthOnly(self.app)
        self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the slot and cancel all timers."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._reader.close()
        for timer in (self._deadline_timer, self._stall_timer):
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
            return
        if self.timeout_keep_alive_task is not None:  # the first bytes of another request
            self._unset_keepalive_if_required()
            self._awaited = None
        self._reader.feed(data)

    def handle_events(self) -> None:
        """Handle the parsed events, then refuse the request if parsing failed."""
        super().handle_events()
        if (
            self.conn.request_error is not None
            and self._lingering is None
            and not self._is_upgraded
        ):
            self._refuse(self.conn.request_error)

    def pause_writing(self) -> None:
        """Pause the response, and disconnect a client that stops reading."""
        super().pause_writing()
        # uvicorn itself waits without a time limit.
        self._stall_timer = self.loop.call_later(self._settings.stall_timeout_s, self._on_stall)

    def resume_writing(self) -> None:
        """Resume the response."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self._is_upgraded:
            self._update_deadline()

    def shutdown(self) -> None:
        """Close; a response in progress is completed, but an unfinished body is not awaited."""
        if self._lingering is not None:
            self.transport.abort()
        elif self.conn.their_state is h11.SEND_BODY:
            self._refuse(_SHUTTING_DOWN)
        else:
            super().shutdown()

    # Called by the connection limiter and the reader.

    def evict(self) -> None:
        """Close at once; the slot has been given to another connection."""
        self.transport.abort()

    def parse_piece(self, piece: bytes) -> Parsed:
        """Parse the bytes and handle their events; body chunks are the items."""
        chunks_before = self.conn.num_chunks
        self.conn.receive_data(piece)
        self.handle_events()
        return Parsed(self.conn.num_chunks - chunks_before)

    def is_finished(self) -> bool:
        """Return whether the connection is closing or has become a WebSocket."""
        is_closed = self._lingering is not None or self.transport.is_closing()
        return is_closed or self._is_upgraded

    def is_paused(self) -> bool:
        """Return whether the application has not read the body so far."""
        return self.flow.read_paused

    def on_turn_parsed(self, *, items_wait_s: float) -> None:
        """Start the time limit of what the client has to send next."""
        self._update_deadline()

    def _on_flow_resumed(self) -> None:
        # Not at once: uvicorn calls this in the middle of its own work.
        self.loop.call_soon(self._reader.schedule)

    # Time limits of the client.

    def _update_deadline(self) -> None:
        """Start the time limit of what the client has to send next, if that has changed."""
        state = self.conn.their_state
        awaited = (state, self.cycle)
        if self._slot is None or self._awaited == awaited:
            return
        self._awaited = awaited
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        if state is h11.IDLE:
            self._slot.mark_waiting()
            self._deadline_timer = self.loop.call_later(
                self._settings.header_timeout_s, self._on_header_timeout
            )
        elif state is h11.SEND_BODY:
            self._slot.mark_waiting()
            self._deadline_timer = self.loop.call_later(
                self._settings.body_timeout_s, self._on_body_timeout
            )
        else:
            self._slot.mark_serving()

    def _on_header_timeout(self) -> None:
        if self._reader.num_unread_bytes or self.conn.trailing_data[0]:
            self._refuse(_request_timeout("headers", self._settings.header_timeout_s))
        else:
            self.transport.abort()  # the client has sent nothing

    def _on_body_timeout(self) -> None:
        self._refuse(_request_timeout("body", self._settings.body_timeout_s))

    def _on_stall(self) -> None:
        logger.info(
            "closing a connection: the client has read nothing for %g s",
            self._settings.stall_timeout_s,
        )
        self.transport.abort()

    # Refusals.

    def _refuse(self, info: ErrorInfo) -> None:
        """Answer with the error, unless a response has begun, and close the connection."""
        if self.is_finished():
            return
        self._unset_keepalive_if_required()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_error(info)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
        self._reader.clear()
        self._lingering = LingeringClose(self.transport)

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
        """Return whether to become a WebSocket; any other upgrade request is ignored.

        A server may ignore `Upgrade` (RFC 9110 §7.8), and must in HTTP/1.0.
        """
        return (
            self.scope["method"] == "GET"
            and self.scope["http_version"] == "1.1"
            and self._get_upgrade() == b"websocket"
            and self._should_upgrade_to_ws()
        )

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection and its slot over to `WebSocketProtocol`, or refuse."""
        assert self._slot is not None
        error = _handshake_error(event, self.headers)
        if self._slot.is_reserved:
            error = _TOO_MANY_CONNECTIONS
        if error is not None:
            self._refuse(error)
            return
        lines = [b"GET " + event.target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self.headers if name != b"content-length"]
        early = self.conn.trailing_data[0] + self._reader.take_unread()
        self._is_upgraded = True
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self.connections.discard(self)
        protocol_class = self.ws_protocol_class
        assert protocol_class is not None
        assert issubclass(protocol_class, WebSocketProtocol)
        protocol = protocol_class(self.config, self.server_state, self.app_state)
        slot, self._slot = self._slot, None
        self.transport.set_protocol(protocol)
        protocol.take_over(
            self.transport, slot, handshake=b"\r\n".join([*lines, b"", b""]), early=early
        )


class _HealthOnly:
    """Answers health checks, and any other request with `too_many_connections`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        is_health = scope["path"] in _HEALTH_PATHS
        app = self._app if is_health else error_response(_TOO_MANY_CONNECTIONS)
        await app(scope, receive, send_closing)


def _handshake_error(event: h11.Request, headers: list[tuple[bytes, bytes]]) -> ErrorInfo | None:
    """Return why a handshake is refused; None if websockets can parse it."""
    fields = dict(headers)
    if fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in fields:
        return _HANDSHAKE_WITH_BODY
    sizes = [len(event.target), *(len(name) + len(value) for name, value in headers)]
    if len(headers) > _MAX_HANDSHAKE_HEADERS or max(sizes) > _MAX_HANDSHAKE_LINE_BYTES:
        return _HANDSHAKE_TOO_BIG
    return None


def _request_timeout(what: str, timeout_s: float) -> ErrorInfo:
    message = f"The request's {what} did not arrive within {timeout_s:g} s."
    return ErrorInfo(code="request_timeout", message=message)
