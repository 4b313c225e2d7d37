"""A response, read in parts that do not hold up what else runs on the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from app.responses.writer import EventFields, ResponseWriter

MAX_EVENTS_PER_READ = 64
"""What a client has missed is written out in parts of this size, each once the last was sent."""


class ResponseReader:
    """Follows one response from a cursor to its end.

    Args:
        writer: as made; it is read by nobody else.
        on_wake: called when a read has left something that can be read at once.
    """

    def __init__(self, writer: ResponseWriter, *, on_wake: Callable[[], None]) -> None:
        self._writer = writer
        self._on_wake = on_wake
        self._events: Iterator[EventFields] | None = None
        self._first: EventFields | None = None

    @property
    def is_done(self) -> bool:
        """Whether the end has been read."""
        return self._writer.is_done and self._first is None

    def skip(self) -> bool:
        """Go to the first event after the cursor; return whether there is one.

        Takes time by the length of what is skipped, so call it on a worker thread.
        """
        self._events = self._writer.events()
        self._first = next(self._events, None)
        if self._first is None:
            self._events = None
        return self._first is not None

    def read(self) -> list[EventFields]:
        """Return what is new, or the first part of it; never waits."""
        events = [] if self._first is None else [self._first]
        self._first = None
        is_begun = self._events is not None
        if self._events is None:
            self._events = self._writer.events()
        events += islice(self._events, MAX_EVENTS_PER_READ - len(events))
        is_whole = len(events) < MAX_EVENTS_PER_READ
        if is_whole:
            self._events = None
        if is_begun or not is_whole:
            self._on_wake()  # there is more, or may be: the log has grown since the first part
        return events
