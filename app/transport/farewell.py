"""The end of a connection whose client may still be sending."""

from __future__ import annotations

import asyncio

_LINGER_S = 1.0
_MAX_DISCARDED_BYTES = 2**22


class Farewell:
    """Lets the client read the last that was written, and reads no more of it than it must.

    A socket that is closed while data waits to be read is reset, and a reset can reach the client
    before our last words (RFC 9112 §9.6): so our side is closed first, and the rest thrown away.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._num_discarded_bytes = 0
        self.timer = asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)
        if transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()

    def discard(self, data: bytes) -> None:
        self._num_discarded_bytes += len(data)
        if self._num_discarded_bytes > _MAX_DISCARDED_BYTES:
            self._transport.abort()

    def end(self) -> None:
        """The connection is gone."""
        self.timer.cancel()
