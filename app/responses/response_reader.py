"""Reads a response's events in chunks, so that a long replay does not block the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from app.responses.schemas.objects import EventObject
from app.responses.writer import ResponseWriter

MAX_EVENTS_PER_READ = 64
"""Events of one chunk; the next chunk is read once this one has been sent."""


class ResponseReader:
    """Reads one response from a cursor to its end.

    Args:
        writer: new, and used by no other reader.
        on_wake: called when a read leaves events that can be read at once.
    """

    def __init__(self, writer: ResponseWriter, *, on_wake: Callable[[], None]) -> None:
        self._writer = writer
        self._on_wake = on_wake
        self._events: Iterator[EventObject] | None = None
        self._first: EventObject | None = None

    @property
    def is_done(self) -> bool:
        """Whether the terminal event has been read."""
        return self._writer.is_done and self._first is None

    def skip(self) -> bool:
        """Advance to the first event after the cursor; return whether there is one.

        Takes time proportional to the skipped part of the log, so call it on a worker thread.
        """
        self._events = self._writer.events()
        self._first = next(self._events, None)
        if self._first is None:
            self._events = None
        return self._first is not None

    def read(self) -> list[EventObject]:
        """Return the new events, or the first chunk of them; never waits."""
        events = [] if self._first is None else [self._first]
        self._first = None
        has_begun = self._events is not None
        if self._events is None:
            self._events = self._writer.events()
        events += islice(self._events, MAX_EVENTS_PER_READ - len(events))
        is_last_chunk = len(events) < MAX_EVENTS_PER_READ
        if is_last_chunk:
            self._events = None
        if has_begun or not is_last_chunk:
            self._on_wake()  # there may be more: the log may have grown since the first chunk
        return events
