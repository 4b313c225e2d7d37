"""Lingering close: ends a connection whose client may still be sending."""

from __future__ import annotations

import asyncio

_MAX_DISCARDED_BYTES = 2**22


class LingeringClose:
    """Closes the sending side first, then discards input until the client closes.

    Closing a socket with unread input resets the connection, and the reset can reach the client
    before the response that was written last (RFC 9112 §9.6). The transport is aborted after
    `linger_s` or 4 MiB of discarded input, whichever comes first.

    Args:
        transport: closed for sending; its input is discarded.
        linger_s: seconds that the client has to close its side.

    Attributes:
        timer: aborts the transport when it fires.
    """

    def __init__(self, transport: asyncio.Transport, *, linger_s: float = 1.0) -> None:
        self._transport = transport
        self._num_discarded_bytes = 0
        self.timer = asyncio.get_running_loop().call_later(linger_s, transport.abort)
        if transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()

    def discard(self, data: bytes) -> None:
        """Count input that will not be parsed; abort when there is too much of it."""
        self._num_discarded_bytes += len(data)
        if self._num_discarded_bytes > _MAX_DISCARDED_BYTES:
            self._transport.abort()

    def cancel(self) -> None:
        """Cancel the timer; call it when the connection is lost."""
        self.timer.cancel()
