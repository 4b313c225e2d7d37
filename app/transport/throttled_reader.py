"""Feeds received bytes to a connection's parser in small pieces, in turns and at a limited rate.

`HttpProtocol` and `WebSocketProtocol` have one reader each. uvicorn would parse everything that has
arrived at once, which can hold the event loop for long.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from app.transport.parsing_queue import ParsingQueue
from app.transport.token_bucket import TokenBucket

_MAX_PIECE_BYTES = 8192
_MAX_BYTES_PER_TURN = 64 * 1024
_DENSE_ITEMS = 4
"""A piece with more items than this makes the next piece as small as possible."""


class Parsed(NamedTuple):
    """What one piece contained."""

    num_items: int
    """Chunks of a body, or frames."""
    num_payload_bytes: int = 0
    """Bytes after decompression."""


class PieceParser(Protocol):
    """The connection's side of the reader."""

    def parse_piece(self, piece: bytes) -> Parsed:
        """Parse the next bytes and handle what they contain."""

    def is_finished(self) -> bool:
        """Return whether no more bytes will be parsed."""

    def is_paused(self) -> bool:
        """Return whether parsing must wait; the parser calls `schedule` when it may go on."""

    def on_turn_parsed(self, *, items_wait_s: float) -> None:
        """Act on the end of a turn; `items_wait_s` is above 0 when the item rate is exceeded."""


class ThrottledReader:
    """Buffers received bytes and parses them one turn at a time.

    A turn parses at most 64 KiB or `max_items_per_turn` items. Pieces grow from `min_piece_bytes`
    to 8 KiB while they hold few items. Reading from the transport is paused while bytes are left
    over, while the parser is paused, and until the token buckets are out of debt.

    Args:
        parser: parses the bytes.
        transport: paused and resumed.
        queue: runs the turns of all connections.
        address: the peer's address, for fair turns.
        byte_bucket: limits bytes; a compressed message counts by its decompressed size.
        item_bucket: limits chunks of a body, or frames.
        min_piece_bytes: bytes that are parsed before their number of items is checked.
        max_items_per_turn: items after which a turn ends.
    """

    def __init__(
        self,
        parser: PieceParser,
        transport: asyncio.Transport,
        *,
        queue: ParsingQueue,
        address: str,
        byte_bucket: TokenBucket,
        item_bucket: TokenBucket,
        min_piece_bytes: int,
        max_items_per_turn: int,
    ) -> None:
        self._parser = parser
        self._transport = transport
        self._queue = queue
        self._address = address
        self._byte_bucket = byte_bucket
        self._item_bucket = item_bucket
        self._min_piece_bytes = min_piece_bytes
        self._max_items_per_turn = max_items_per_turn
        self._unread = bytearray()
        self._piece_bytes = min_piece_bytes
        self._throttle_timer: asyncio.TimerHandle | None = None

    @property
    def num_unread_bytes(self) -> int:
        """The number of buffered bytes."""
        return len(self._unread)

    @property
    def is_throttled(self) -> bool:
        """Whether the client has exceeded a rate and waits for it."""
        return self._throttle_timer is not None

    def feed(self, data: bytes) -> None:
        """Buffer the data and parse it now or soon."""
        self._unread += data
        self.schedule()

    def schedule(self) -> None:
        """Parse now or soon, or update whether the transport is paused."""
        self._queue.submit(self._run_turn, address=self._address)

    def take_unread(self) -> bytes:
        """Return the buffered bytes and forget them."""
        unread = bytes(self._unread)
        self._unread.clear()
        return unread

    def clear(self) -> None:
        """Forget the buffered bytes."""
        self._unread.clear()

    def close(self) -> None:
        """Forget the buffered bytes and cancel the timer; call it when the connection is lost."""
        self._unread.clear()
        if self._throttle_timer is not None:
            self._throttle_timer.cancel()

    def _run_turn(self) -> None:
        if self._parser.is_finished():
            self._unread.clear()
            return
        if not self.is_throttled:
            wait_s = self._parse()
            if self._parser.is_finished():
                return
            if wait_s:
                loop = asyncio.get_running_loop()
                self._throttle_timer = loop.call_later(wait_s, self._end_throttle)
        must_wait = self.is_throttled or self._parser.is_paused()
        if self._unread or must_wait:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        if self._unread and not must_wait:
            self._queue.resubmit(self._run_turn, address=self._address)

    def _parse(self) -> float:
        """Parse the pieces of one turn; return the seconds to wait until the rates allow more."""
        num_bytes, num_payload_bytes, num_items = 0, 0, 0
        while (
            self._unread
            and num_bytes < _MAX_BYTES_PER_TURN
            and num_items < self._max_items_per_turn
            and not self._parser.is_paused()
        ):
            piece = bytes(self._unread[: self._piece_bytes])
            del self._unread[: self._piece_bytes]
            parsed = self._parser.parse_piece(piece)
            if self._parser.is_finished():
                return 0.0
            if parsed.num_items > _DENSE_ITEMS:
                self._piece_bytes = self._min_piece_bytes
            else:
                self._piece_bytes = min(4 * self._piece_bytes, _MAX_PIECE_BYTES)
            num_bytes += len(piece)
            num_payload_bytes += parsed.num_payload_bytes
            num_items += parsed.num_items
        now = asyncio.get_running_loop().time()
        items_wait_s = self._item_bucket.take(num_items, now=now)
        bytes_wait_s = self._byte_bucket.take(max(num_bytes, num_payload_bytes), now=now)
        self._parser.on_turn_parsed(items_wait_s=items_wait_s)
        return max(items_wait_s, bytes_wait_s)

    def _end_throttle(self) -> None:
        self._throttle_timer = None
        self.schedule()
