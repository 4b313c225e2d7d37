from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.transport.parsing_queue import ParsingQueue
from app.transport.throttled_reader import Parsed, ThrottledReader
from app.transport.token_bucket import TokenBucket
from tests.app.serving import until
from tests.support import yield_to_loop


class Transport(asyncio.Transport):
    """Records whether reading is paused."""

    is_paused = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Parser:
    """Records the pieces; every `x` is an item."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_over = False
        self.must_wait = False
        self.payload_factor = 1
        self.num_turns = 0
        self.items_wait_s = 0.0

    @property
    def received(self) -> bytes:
        return b"".join(self.pieces)

    def parse_piece(self, piece: bytes) -> Parsed:
        self.pieces.append(piece)
        return Parsed(piece.count(b"x"), self.payload_factor * len(piece))

    def is_finished(self) -> bool:
        return self.is_over

    def is_paused(self) -> bool:
        return self.must_wait

    def on_turn_parsed(self, *, items_wait_s: float) -> None:
        self.num_turns += 1
        self.items_wait_s = items_wait_s


class Rig:
    """A reader with its parser and its transport."""

    def __init__(self, *, bytes_per_s: float = 1e9, items_per_s: float = 1e9) -> None:
        self.parser = Parser()
        self.transport = Transport()
        self.reader = ThrottledReader(
            self.parser,
            self.transport,
            queue=ParsingQueue(budget_s=1000.0),
            address="",
            byte_bucket=TokenBucket(per_s=bytes_per_s, max_burst=bytes_per_s),
            item_bucket=TokenBucket(per_s=items_per_s, max_burst=items_per_s),
            min_piece_bytes=16,
            max_items_per_turn=10,
        )


async def test_pieces_grow_while_they_hold_few_items_and_shrink_with_many() -> None:
    rig = Rig()
    rig.reader.feed(b"-" * (16 + 64 + 256) + b"xxxxx" + b"-" * 2000)
    sizes = [len(piece) for piece in rig.parser.pieces]
    assert sizes == [16, 64, 256, 1024, 16, 64, 256, 645]


async def test_a_turn_ends_after_the_items_and_another_follows() -> None:
    rig = Rig()
    rig.reader.feed(b"x" * 100)
    assert rig.parser.received == b"x" * 16
    assert rig.transport.is_paused
    await until(lambda: rig.parser.received == b"x" * 100)
    assert rig.parser.num_turns == 7
    assert not rig.transport.is_paused


async def test_a_turn_ends_after_64_kib() -> None:
    rig = Rig()
    rig.reader.feed(b"-" * 2**18)
    assert 2**16 <= len(rig.parser.received) < 2**16 + 8192
    await until(lambda: rig.reader.num_unread_bytes == 0)


async def test_a_paused_parser_gets_nothing_until_it_schedules() -> None:
    rig = Rig()
    rig.parser.must_wait = True
    rig.reader.feed(b"one")
    await yield_to_loop()
    assert (rig.parser.pieces, rig.transport.is_paused) == ([], True)
    rig.parser.must_wait = False
    rig.reader.schedule()
    assert (rig.parser.received, rig.transport.is_paused) == (b"one", False)


async def test_a_client_that_exceeds_the_byte_rate_waits() -> None:
    rig = Rig(bytes_per_s=1000)
    rig.reader.feed(b"-" * 1010)
    rig.reader.feed(b"more")
    assert rig.reader.is_throttled
    assert rig.transport.is_paused
    assert rig.parser.items_wait_s == 0
    assert rig.reader.num_unread_bytes == len(b"more")
    await until(lambda: rig.parser.received.endswith(b"more"))


async def test_a_client_that_exceeds_the_item_rate_waits() -> None:
    rig = Rig(items_per_s=100)
    rig.reader.feed(b"x" * 102)
    await until(lambda: rig.reader.is_throttled)
    assert 0 < rig.parser.items_wait_s <= 0.02
    await until(lambda: not rig.reader.is_throttled)


@pytest.mark.parametrize(("factor", "is_throttled"), [(1, False), (100, True)])
async def test_compressed_bytes_count_by_their_decompressed_size(
    factor: int, is_throttled: bool
) -> None:
    rig = Rig(bytes_per_s=1000)
    rig.parser.payload_factor = factor
    rig.reader.feed(b"-" * 100)
    assert rig.reader.is_throttled == is_throttled
    rig.reader.close()


async def test_nothing_is_parsed_after_the_end() -> None:
    rig = Rig()

    def finish(piece: bytes) -> Parsed:
        rig.parser.is_over = True
        return Parsed(0)

    rig.parser.parse_piece = finish  # type: ignore[method-assign]
    rig.reader.feed(b"-" * 100)
    rig.reader.feed(b"more")
    assert (rig.parser.num_turns, rig.reader.num_unread_bytes) == (0, 0)


async def test_unread_bytes_can_be_taken_once() -> None:
    rig = Rig()
    rig.parser.must_wait = True
    rig.reader.feed(b"early")
    assert (rig.reader.take_unread(), rig.reader.take_unread()) == (b"early", b"")


async def test_a_closed_reader_leaves_no_timer() -> None:
    rig = Rig(bytes_per_s=10)
    rig.reader.feed(b"-" * 20)
    timer: Any = rig.reader._throttle_timer
    rig.reader.close()
    assert timer.cancelled()
