from __future__ import annotations

import pytest

from app.responses.protocol.events import TERMINAL_TYPES, Event
from app.responses.response_reader import MAX_EVENTS_PER_READ, ResponseReader
from app.responses.writer import ResponseWriter
from streaming import FinishReason, Generation
from tests.app.response_events import check_events
from tests.app.responses.logs import append, finish, make_head, make_log, write


class Reading:
    """Reads like a connection: once, and again after each wake."""

    def __init__(self, log: Generation, *, after: int = -1) -> None:
        self.is_woken = True
        writer = ResponseWriter(make_head(), log, after=after)
        self.reader = ResponseReader(writer, on_wake=self.wake)
        self.events: list[Event] = []

    def wake(self) -> None:
        self.is_woken = True

    def read_once(self) -> None:
        assert self.is_woken
        self.is_woken = False
        events = self.reader.read()
        assert len(events) <= MAX_EVENTS_PER_READ
        self.events += events
        has_ended = bool(events) and events[-1]["type"] in TERMINAL_TYPES
        assert self.reader.is_done == has_ended, "a reader is not read after the end"

    def read_all(self) -> None:
        while self.is_woken and not self.reader.is_done:
            self.read_once()


@pytest.mark.parametrize("num_tokens", [0, 1, 50, *range(55, 66), 120, 200])
def test_a_long_log_is_read_in_chunks(num_tokens: int):
    log = make_log(*("x" * num_tokens))
    reading = Reading(log)
    reading.read_all()
    assert reading.reader.is_done
    assert reading.events == write(log)
    check_events([{**event} for event in reading.events])


@pytest.mark.parametrize("num_parts", [0, 1, 2, 3])
def test_events_between_two_chunks_are_not_missed(num_parts: int):
    log = make_log(*("x" * 150), end=None)
    reading = Reading(log)
    for _ in range(num_parts):
        reading.read_once()
    append(log, "y")
    reading.wake()  # as the engine does while the previous chunk is being sent
    reading.read_all()
    assert reading.events == write(log)
    assert not reading.reader.is_done
    finish(log, FinishReason.STOP)
    reading.wake()
    reading.read_all()
    assert reading.reader.is_done
    assert reading.events == write(log)


def test_events_after_a_skip_are_not_missed():
    log = make_log(*"abc", end=None)
    reading = Reading(log, after=3)
    assert reading.reader.skip()
    append(log, "d")
    finish(log, FinishReason.STOP)
    reading.read_all()
    assert reading.events == write(log)[4:]


@pytest.mark.parametrize("end", [None, FinishReason.STOP])
def test_a_skip_to_the_newest_event_finds_nothing(end: FinishReason | None):
    log = make_log(*"abc", end=end)
    reading = Reading(log, after=len(write(log)) - 1)
    assert not reading.reader.skip()
    assert reading.reader.is_done is (end is not None)
    assert reading.reader.read() == []
