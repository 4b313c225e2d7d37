"""Reads a log from a cursor to its end, as a stream of events. Each client has its own reader.

A reader returns everything after its cursor, and waits if there is nothing new. Records that piled
up since its last read are merged into one `Delta`, so a slow client needs no buffer of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Self

from streaming.errors import CursorLost
from streaming.log.generation import (
    Failed,
    Finished,
    Generation,
    Queued,
    Started,
    Tokens,
)


@dataclass(frozen=True, slots=True)
class Delta:
    """Text and tokens between a reader's previous cursor and `seq`, its new one."""

    seq: int
    text: str
    tokens: Tokens

    def cut(self, *, max_tokens: int) -> Iterator[Delta]:
        """Yield the same content as deltas of at most `max_tokens` tokens each."""
        tokens = self.tokens
        if len(tokens) <= max_tokens:
            yield self
            return
        # Each record is a token, except for a possible tail after the last one.
        has_tail = len(self.text) > len(tokens.text)
        last_token_seq = self.seq - has_tail
        before = last_token_seq - len(tokens)
        num_text_chars = 0
        for start in range(0, len(tokens), max_tokens):
            part = tokens[start : start + max_tokens]
            text = part.text
            num_text_chars += len(text)
            seq = before + start + len(part)
            if seq == last_token_seq and has_tail:
                seq, text = self.seq, text + self.text[num_text_chars:]
            yield Delta(seq, text, part)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of the log: its terminal record, and that record's sequence number."""

    seq: int
    record: Finished | Failed


Event = Queued | Started | Delta | Ended


class Reader:
    """Reads one generation from a cursor to its end.

    Iterate (`async for event in reader`), or pass `on_wake` and call `read` after each wake, as a
    connection with many readers does. Use it as a context manager, or call `close`.

    Args:
        generation: the log to read.
        after: sequence number of the last record that the client has; -1 is the start.
        include_empty_deltas: also return deltas of tokens that have no text yet.
        on_wake: called on the event loop's thread when there may be new records.

    Raises:
        CursorLost: `after` is not in the log.
    """

    def __init__(
        self,
        generation: Generation,
        *,
        after: int = -1,
        include_empty_deltas: bool = False,
        on_wake: Callable[[], None] | None = None,
    ) -> None:
        if not -1 <= after <= generation.last_seq:
            raise CursorLost(after=after, last=generation.last_seq)
        self.generation = generation
        # A client that has the terminal record gets it again, so that each reader has one ending.
        starts_at_end = generation.is_ended and after == generation.last_seq
        self.cursor = after - 1 if starts_at_end else after
        self.is_done = False
        self._include_empty_deltas = include_empty_deltas
        self._last_queued: Queued | None = None
        self._has_seen_start = False
        self._woken = asyncio.Event()
        self._on_wake = on_wake
        generation.subscribe(self._wake)  # unique per reader; two may share one `on_wake`

    def read(self) -> list[Event]:
        """Return the new events, merged, and advance the cursor. Does not block.

        Returns `Ended` once at the end of the log, and an empty list after that.
        """
        if self.is_done:
            return []
        generation = self.generation
        # Count the records before reading `started`, which is set before the first record. In this
        # order a read can see a start without a token, but never a token without its start.
        num_records, outcome = generation.extent
        events: list[Event] = []
        started, queued = generation.started, generation.queued
        if started is not None:
            if not self._has_seen_start:
                self._has_seen_start = True
                events.append(started)
        elif queued is not None and queued != self._last_queued:
            self._last_queued = queued
            events.append(queued)

        # The cursor stays before tokens without text until there is text after them.
        start = self.cursor + 1
        if start < num_records and (
            self._include_empty_deltas or generation.has_text_between(start, num_records)
        ):
            self.cursor = num_records - 1
            text = generation.text_between(start, num_records)
            tokens = generation.tokens_between(start, num_records)
            events.append(Delta(self.cursor, text, tokens))
        if outcome is not None:
            self.is_done = True
            self.cursor = num_records
            events.append(Ended(num_records, outcome))
        return events

    async def __aiter__(self) -> AsyncIterator[Event]:
        while not self.is_done:
            events = self.read()
            for event in events:
                yield event
            if not events:
                await self._woken.wait()
                self._woken.clear()

    async def wait_ended(self) -> Finished | Failed:
        """Wait for the end of the log and return its terminal record, without reading events."""
        while (outcome := self.generation.outcome) is None:
            await self._woken.wait()
            self._woken.clear()
        return outcome

    def close(self) -> None:
        """Unsubscribe from the log."""
        self.generation.unsubscribe(self._wake)

    def _wake(self) -> None:
        self._woken.set()
        if self._on_wake is not None:
            self._on_wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
