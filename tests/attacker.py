"""A hostile client: builds bytes that no client library would send."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

Address = tuple[str, int]

TIMEOUT_S = 30.0
"""Time for the server to answer or to close."""
TEXT, PING = 0x1, 0x9
_BLOCK_BYTES = 2**16


def dial(address: Address) -> socket.socket:
    """Open a TCP connection."""
    return socket.create_connection(address, timeout=TIMEOUT_S)


def send_all(connection: socket.socket, data: bytes) -> bool:
    """Send the data and return whether the server accepted all of it."""
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def answer_to(address: Address, *parts: bytes) -> bytes:
    """Send the parts and return what the server sends until it closes."""
    with dial(address) as connection:
        for part in parts:
            if not send_all(connection, part):
                break
        return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes or resets the connection."""
    answer = b""
    with suppress(ConnectionError):
        while data := connection.recv(_BLOCK_BYTES):
            answer += data
    return answer


def request(path: str = "/health", *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Return a request with these header lines."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def handshake(*headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Return a WebSocket handshake with additional header lines."""
    key = base64.b64encode(os.urandom(16)).decode()
    own = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}")
    return request(
        "/v1/stream", *own, "Sec-WebSocket-Version: 13", *headers, method=method, body=body
    )


def frame(opcode: int, payload: bytes = b"", *, is_last: bool = True) -> bytes:
    """Return a frame whose mask is zero, which leaves the payload unchanged."""
    size = len(payload)
    head = bytes([opcode | (0x80 if is_last else 0)])
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 2**16:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return head + length + bytes(4) + payload


def fragments(message: bytes, size: int) -> bytes:
    """Return a text message in frames of `size` bytes."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    last = len(pieces) - 1
    return b"".join(
        frame(0 if at else TEXT, piece, is_last=at == last) for at, piece in enumerate(pieces)
    )


class RawWebSocket:
    """A WebSocket without a protocol implementation; the constructor does the handshake."""

    def __init__(self, address: Address) -> None:
        self.socket = dial(address)
        self.socket.sendall(handshake())
        self._unread = b""
        while b"\r\n\r\n" not in self._unread:
            data = self.socket.recv(_BLOCK_BYTES)
            assert data, self._unread
            self._unread += data
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Yield opcode and payload of each frame until the server closes."""
        while (head := self._read(2)) is not None:
            size = head[1]
            if size >= 126:
                length = self._read(2 if size == 126 else 8)
                assert length is not None
                size = int.from_bytes(length, "big")
            payload = self._read(size)
            assert payload is not None
            yield head[0] & 0x0F, payload

    def close_code(self) -> int | None:
        """Return the code of the server's close frame; None if it closed without one."""
        for opcode, payload in self.frames():
            if opcode == 0x8:
                return int.from_bytes(payload[:2], "big")
        return None

    def _read(self, size: int) -> bytes | None:
        while len(self._unread) < size:
            try:
                data = self.socket.recv(_BLOCK_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                return None
            self._unread += data
        data, self._unread = self._unread[:size], self._unread[size:]
        return data
