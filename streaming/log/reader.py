"""A client of a log: a cursor, and the events between it and the log's end.

A reader asks for everything after sequence number N and waits when there is nothing yet. What piled
up while it was away merges into one `Delta`, so a slow client takes no memory beyond the log's own.
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
    """Everything between a reader's old cursor and `seq`, its new one."""

    seq: int
    text: str
    tokens: Tokens

    def cut(self, *, max_tokens: int) -> Iterator[Delta]:
        """Yield the same as deltas of so many tokens each."""
        tokens = self.tokens
        if len(tokens) <= max_tokens:
            yield self
            return
        # A record is a token, except that text let go at the end may be one more behind them.
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
    """The log's terminal record."""

    seq: int
    record: Finished | Failed


Event = Queued | Started | Delta | Ended


class Reader:
    """Follows one generation from a cursor to its end.

    Iterate (`async for event in reader`), or pass `on_wake` and call `read` after each wake, as a
    connection does that follows many. Use as a context manager, or call `close`.

    Args:
        generation: the log to follow.
        after: sequence number of the last record that the client has; -1 is the start.
        include_empty_deltas: also report tokens that show no text yet.
        on_wake: called on the event loop's thread when there may be something new.

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
        # Who already has the terminal record gets it once more, so that each reader has an ending.
        starts_at_end = generation.is_ended and after == generation.last_seq
        self.cursor = after - 1 if starts_at_end else after
        self.is_done = False
        self._include_empty_deltas = include_empty_deltas
        self._last_queued: Queued | None = None
        self._has_seen_start = False
        self._woken = asyncio.Event()
        self._on_wake = on_wake
        generation.subscribe(self._wake)  # its own method: two readers may share one `on_wake`

    def read(self) -> list[Event]:
        """Return what is new, merged, and move the cursor past it; never waits.

        After the log's end it returns `Ended` once and then nothing.
        """
        if self.is_done:
            return []
        generation = self.generation
        # The records are counted before the start mark is read: it is set before the first record,
        # so this order can show a start without a token, but never a token without its start.
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

        # The cursor waits before tokens without text until text follows.
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
        """Wait for the end, without looking at what is on the way."""
        while (outcome := self.generation.outcome) is None:
            await self._woken.wait()
            self._woken.clear()
        return outcome

    def close(self) -> None:
        self.generation.unsubscribe(self._wake)

    def _wake(self) -> None:
        self._woken.set()
        if self._on_wake is not None:
            self._on_wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
