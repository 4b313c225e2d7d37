"""The log of one generation, and the readers that follow it.

Every generation is an append-only log; every client is a reader with a cursor. The engine appends
and never knows who reads. A reader asks for everything after sequence number N and waits when there
is nothing yet; what piled up while it was away merges into one `Delta`, so a slow client costs no
memory beyond the log itself.

Rules of the log:

* A record's sequence number is its index. It never changes and is never used twice.
* The log ends exactly once, with `Finished` or `Failed`. Nothing follows it.
* The engine's thread appends; the event loop's thread reads. Appending to a list and reading its
  length are atomic, and `wake` is called on the readers' thread, so no lock is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from streaming.errors import CursorLost, StreamingError
from streaming.output_parser import PLAIN, OutputFormat

_LOG_BYTES = 900
"""Cost of a log without its records and labels: itself, its id, its list and its marks."""
_RECORD_BYTES = 200
"""Cost of a record without its text: the object, its time stamp, an empty string, a list slot."""
_LOGPROB_BYTES = 250
"""Cost of one reported alternative."""


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and its natural-log probability under the model's own distribution."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probability of the chosen token, and the likeliest alternatives, best first."""

    chosen: Logprob
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text that it set free, which may be none.

    `at` is in monotonic seconds, here and in all records.
    """

    token_id: int
    text: str
    at: float
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """Text that was held back as a possible stop string and is let go without a further token."""

    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Finished:
    finish_reason: FinishReason
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    error: StreamingError
    at: float


Record = Token | Tail | Finished | Failed


@dataclass(frozen=True, slots=True)
class Queued:
    """A place in the queue: 0 is next. The wait is None until a throughput has been measured."""

    position: int
    estimated_wait_s: float | None


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt's size, and how much of it came from the prefix cache."""

    prompt_tokens: int
    cached_tokens: int
    at: float


@dataclass(frozen=True, slots=True)
class Delta:
    """Everything between a reader's old cursor and `seq`, its new one."""

    seq: int
    text: str
    tokens: tuple[Token, ...]

    def cut(self, *, max_tokens: int) -> Iterator[Delta]:
        """Yield the same as deltas of so many tokens each."""
        tokens = self.tokens
        if len(tokens) <= max_tokens:
            yield self
            return
        # A record is a token, except that text let go at the end may be one more behind them.
        has_tail = len(self.text) > sum(len(token.text) for token in tokens)
        last_token_seq = self.seq - has_tail
        before = last_token_seq - len(tokens)
        num_text_chars = 0
        for start in range(0, len(tokens), max_tokens):
            part = tokens[start : start + max_tokens]
            text = "".join(token.text for token in part)
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


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a generation went, in seconds; None where it never got that far.

    Attributes:
        queue_s: submitted to started.
        prefill_s: started to first token.
        ttft_s: submitted to first token.
        total_s: submitted to end.
        tokens_per_s: tokens after the first, by the time they took.
    """

    queue_s: float | None
    prefill_s: float | None
    ttft_s: float | None
    total_s: float | None
    tokens_per_s: float | None


@dataclass(slots=True, eq=False, kw_only=True)
class Generation:
    """The append-only log of one generation.

    Attributes:
        generation_id: unguessable; whoever has it and the owner's key may resume.
        owner: the caller that may read, resume and cancel it.
        model: id of the model that writes it.
        created_at: unix seconds, for people.
        submitted_at: monotonic seconds, for timings.
        metadata: the client's own labels, given back as they came.
        prompt_tokens: size of the prompt, known at admission.
        output_format: what an `OutputParser` is to look for in the text.
        scored_prompt: the prompt's tokens, where their log probabilities are wanted; the first has
            none. It is there before the first token is.
        num_bytes: about what the log takes in memory, rather too much than too little.
    """

    generation_id: str
    owner: str
    model: str
    created_at: float
    submitted_at: float
    prompt_tokens: int
    output_format: OutputFormat = PLAIN
    metadata: Mapping[str, str] = field(default_factory=dict)
    queued: Queued | None = None
    started: Started | None = None
    scored_prompt: tuple[Token, ...] | None = None
    num_bytes: int = _LOG_BYTES
    _records: list[Record] = field(default_factory=list)
    _num_tokens: int = 0
    _subscribers: set[Callable[[], None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        for key, value in self.metadata.items():
            self.num_bytes += _RECORD_BYTES + _num_bytes(key) + _num_bytes(value)

    # The engine's side.

    def start(self, *, cached_tokens: int, at: float) -> None:
        """Mark the end of waiting; a preempted sequence that starts again keeps its first mark."""
        if self.started is None:
            self.started = Started(self.prompt_tokens, cached_tokens, at)
        self.queued = None

    def append(self, record: Token | Tail) -> None:
        """Add text to the open log."""
        assert not self.is_ended, "a log takes nothing after its end"
        self.num_bytes += _record_bytes(record)
        if isinstance(record, Token):
            self._num_tokens += 1
        self._records.append(record)

    def score_prompt(self, tokens: Iterable[Token]) -> None:
        """Take the prompt's tokens with their log probabilities, before the first record."""
        assert not self._records, "readers that have seen a token have seen the prompt"
        self.scored_prompt = tuple(tokens)
        self.num_bytes += sum(map(_record_bytes, self.scored_prompt))

    def end(self, record: Finished | Failed) -> None:
        """Close the log, once."""
        assert not self.is_ended, "a log ends once"
        self.num_bytes += _RECORD_BYTES
        self.queued = None
        self._records.append(record)

    # The readers' side.

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest record; -1 when there is none."""
        return len(self._records) - 1

    @property
    def outcome(self) -> Finished | Failed | None:
        """The terminal record, once there is one."""
        last = self._records[-1] if self._records else None
        return last if isinstance(last, Finished | Failed) else None

    @property
    def is_ended(self) -> bool:
        return self.outcome is not None

    @property
    def text(self) -> str:
        """All text so far."""
        return _join_text(self._records)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """All tokens so far."""
        return tuple(record for record in self._records if isinstance(record, Token))

    @property
    def usage(self) -> Usage:
        cached = 0 if self.started is None else self.started.cached_tokens
        return Usage(self.prompt_tokens, cached, self._num_tokens)

    @property
    def timings(self) -> Timings:
        tokens = self.tokens
        started_at = self.started.at if self.started else None
        first_at = tokens[0].at if tokens else None
        outcome = self.outcome
        decode_s = tokens[-1].at - tokens[0].at if len(tokens) > 1 else 0.0
        return Timings(
            queue_s=_since(self.submitted_at, started_at),
            prefill_s=_since(started_at, first_at),
            ttft_s=_since(self.submitted_at, first_at),
            total_s=_since(self.submitted_at, outcome.at if outcome else None),
            tokens_per_s=(len(tokens) - 1) / decode_s if decode_s > 0 else None,
        )

    def read_after(self, cursor: int) -> list[Record]:
        """Return all records after `cursor`; an empty list when there is nothing new."""
        return self._records[cursor + 1 :]

    def subscribe(self, on_wake: Callable[[], None]) -> None:
        self._subscribers.add(on_wake)

    def unsubscribe(self, on_wake: Callable[[], None]) -> None:
        self._subscribers.discard(on_wake)

    @property
    def num_subscribers(self) -> int:
        return len(self._subscribers)

    def wake(self) -> None:
        """Tell all readers to look again. Called on the readers' thread only."""
        for on_wake in tuple(self._subscribers):
            on_wake()


class Reader:
    """Follows one generation from a cursor to its end.

    Iterate (`async for event in reader`), or pass `on_wake` and call `read` after each wake, as a
    connection does that follows many. Use as a context manager, or call `close`.

    Args:
        generation: the log to follow.
        after: sequence number of the last record that the client has; -1 is the start.
        every_token: also report tokens that show no text yet.
        on_wake: called on the event loop's thread when there may be something new.

    Raises:
        CursorLost: `after` is not in the log.
    """

    def __init__(
        self,
        generation: Generation,
        *,
        after: int = -1,
        every_token: bool = False,
        on_wake: Callable[[], None] | None = None,
    ) -> None:
        if not -1 <= after <= generation.last_seq:
            raise CursorLost(after=after, last=generation.last_seq)
        self.generation = generation
        # Who already has the terminal record gets it once more, so that each reader has an ending.
        starts_at_end = generation.is_ended and after == generation.last_seq
        self.cursor = after - 1 if starts_at_end else after
        self.is_done = False
        self._every_token = every_token
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
        # The records are read before the start mark: it is set before the first record, so this
        # order can show a start without a token, but never a token without its start.
        records = generation.read_after(self.cursor)
        events: list[Event] = []
        started, queued = generation.started, generation.queued
        if started is not None:
            if not self._has_seen_start:
                self._has_seen_start = True
                events.append(started)
        elif queued is not None and queued != self._last_queued:
            self._last_queued = queued
            events.append(queued)

        last = records[-1] if records else None
        outcome = last if isinstance(last, Finished | Failed) else None
        if outcome is not None:
            records.pop()
        end = self.cursor + len(records)
        text = _join_text(records)
        if text or (records and self._every_token):
            self.cursor = end
            tokens = tuple(record for record in records if isinstance(record, Token))
            events.append(Delta(end, text, tokens))
        if outcome is not None:
            self.is_done = True
            self.cursor = end + 1
            events.append(Ended(self.cursor, outcome))
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


def _join_text(records: list[Record]) -> str:
    return "".join(record.text for record in records if isinstance(record, Token | Tail))


def _record_bytes(record: Token | Tail) -> int:
    num_bytes = _RECORD_BYTES + _num_bytes(record.text)
    if isinstance(record, Token) and record.logprobs is not None:
        num_bytes += _LOGPROB_BYTES * (1 + len(record.logprobs.top))
    return num_bytes


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _since(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
