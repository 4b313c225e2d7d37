"""The log of one generation.

Every generation is an append-only log; every client is a reader with a cursor. The engine appends
and never knows who reads.

Rules of the log:

* A record's sequence number is its index. It never changes and is never used twice.
* The log ends exactly once, with `Finished` or `Failed`. Nothing follows it.
* The engine's thread appends; the event loop's thread reads. A record counts once it is whole, and
  `wake` is called on the readers' thread, so no lock is needed.
* Nothing is kept for each record that the garbage collector would visit: see `records.py`.
* Either thread may end the log: the loop does where the engine is stuck. The first one wins. What
  the engine appends after that is ignored: it learns of the end when it looks next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain

from streaming.chat.output_parser import PLAIN, OutputFormat
from streaming.errors import StreamingError
from streaming.log.records import Logprob, RecordColumns, Scores, Tail, Token, TokenLogprobs
from streaming.log.tokens import Tokens

__all__ = [
    "Failed",
    "FinishReason",
    "Finished",
    "Generation",
    "Logprob",
    "Queued",
    "Record",
    "Scores",
    "Started",
    "Tail",
    "Timings",
    "Token",
    "TokenLogprobs",
    "Tokens",
    "Usage",
]

_LOG_BYTES = 1000
"""Memory that a log takes without its columns and labels: itself, its id, its marks, its end."""
_LABEL_BYTES = 200
"""Memory that a label takes beyond its UTF-8: two strings and a place in a dictionary."""


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


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


@dataclass(slots=True, eq=False)
class _Ending:
    """A terminal record; its sequence number is how many records are before it.

    These are counted once the ending is in the log, since the engine may append until then, and on
    whichever thread asks first: to append is atomic, so all threads see the same first count.
    """

    record: Finished | Failed
    _counts: list[int] = field(default_factory=list)

    def seq(self, num_records: int) -> int:
        """Return the sequence number.

        Args:
            num_records: how many there are now, counted after the ending has been seen.
        """
        if not self._counts:
            self._counts.append(num_records)
        return self._counts[0]


@dataclass(slots=True, eq=False, kw_only=True)
class Generation:
    """The append-only log of one generation.

    Attributes:
        generation_id: unguessable; whoever has it and the caller's key may resume.
        caller: the caller that may read, resume and cancel it.
        model: id of the model that writes it.
        created_at: unix seconds, for people.
        submitted_at: monotonic seconds, for timings.
        metadata: the client's own labels, given back as they came.
        prompt_tokens: size of the prompt, known at admission.
        output_format: what an `OutputParser` is to look for in the text.
        scored_prompt: the prompt's tokens, where their log probabilities are wanted; the first has
            none. It is there before the first token is.
    """

    generation_id: str
    caller: str
    model: str
    created_at: float
    submitted_at: float
    prompt_tokens: int
    output_format: OutputFormat = PLAIN
    metadata: Mapping[str, str] = field(default_factory=dict)
    queued: Queued | None = None
    started: Started | None = None
    scored_prompt: Tokens | None = None
    _records: RecordColumns = field(default_factory=RecordColumns)
    _endings: list[_Ending] = field(default_factory=list)
    _subscribers: dict[Callable[[], None], None] = field(default_factory=dict)  # in order

    # The engine's side.

    def start(self, *, cached_tokens: int, at: float) -> None:
        """Mark the end of waiting; a preempted sequence that starts again keeps its first mark."""
        if self.started is None:
            self.started = Started(self.prompt_tokens, cached_tokens, at)
        self.queued = None

    def append(self, record: Token | Tail) -> None:
        """Add text to the log, unless it has been ended meanwhile. The engine's thread only."""
        if self._endings:
            return
        self._records.append(record)

    def score_prompt(self, tokens: Iterable[Token]) -> None:
        """Take the prompt's tokens with their log probabilities, before the first record."""
        assert not len(self._records), "readers that have seen a token have seen the prompt"
        self.scored_prompt = Tokens.of(tokens)

    def end(self, record: Finished | Failed) -> bool:
        """Close the log; return False where it had been closed already. On any thread."""
        if self._endings:
            return False
        # Both threads may have come here: to append is atomic, and the first in the list counts.
        ending = _Ending(record)
        self._endings.append(ending)
        if self._endings[0] is not ending:
            return False
        ending.seq(len(self._records))
        self.queued = None
        return True

    # The readers' side.

    @property
    def num_bytes(self) -> int:
        """About what the log takes in memory, rather too much than too little."""
        num_bytes = _LOG_BYTES + self._records.num_bytes
        if self.scored_prompt is not None:
            num_bytes += self.scored_prompt.num_bytes
        for label in self.metadata.items():
            num_bytes += _LABEL_BYTES + sum(
                len(part.encode("utf-8", "surrogatepass")) for part in label
            )
        return num_bytes

    @property
    def extent(self) -> tuple[int, Finished | Failed | None]:
        """How many tokens and tails there are, and the terminal record, if it follows them.

        Both are of one moment.
        """
        # Counted before the ending is looked for: a record that the engine appends while another
        # thread ends the log may come too late, and whoever had counted it would wait for ever.
        num_records = len(self._records)
        if not self._endings:
            return num_records, None
        ending = self._endings[0]
        return ending.seq(len(self._records)), ending.record

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest record; -1 when there is none."""
        num_records, outcome = self.extent
        return num_records - (outcome is None)

    @property
    def outcome(self) -> Finished | Failed | None:
        """The terminal record, once there is one."""
        return self._endings[0].record if self._endings else None

    @property
    def is_ended(self) -> bool:
        return bool(self._endings)

    @property
    def text(self) -> str:
        """All text so far."""
        return self.text_between(0, self.extent[0])

    @property
    def tokens(self) -> Tokens:
        """All tokens so far."""
        return self.tokens_between(0, self.extent[0])

    @property
    def usage(self) -> Usage:
        cached = 0 if self.started is None else self.started.cached_tokens
        return Usage(self.prompt_tokens, cached, len(self.tokens))

    @property
    def timings(self) -> Timings:
        tokens, outcome = self.tokens, self.outcome
        started_at = self.started.at if self.started else None
        first_at = tokens.time_of(0) if tokens else None
        decode_s = tokens.time_of(-1) - tokens.time_of(0) if tokens else 0.0
        return Timings(
            queue_s=_since(self.submitted_at, started_at),
            prefill_s=_since(started_at, first_at),
            ttft_s=_since(self.submitted_at, first_at),
            total_s=_since(self.submitted_at, outcome.at if outcome else None),
            tokens_per_s=(len(tokens) - 1) / decode_s if decode_s > 0 else None,
        )

    def read_after(self, cursor: int) -> list[Record]:
        """Return all records after `cursor`; an empty list when there is nothing new."""
        return list(self.records_after(cursor))

    def records_after(self, cursor: int) -> Iterator[Record]:
        """Yield all records after `cursor` that are there now, each made when it is asked for."""
        num_records, outcome = self.extent
        start = min(cursor + 1, num_records)
        ending = () if outcome is None or cursor >= num_records else (outcome,)
        return chain(self.records_between(start, num_records), ending)

    def tokens_at(self, numbers: Sequence[int]) -> Tokens:
        """Return the tokens that are these records, in rising order: a view."""
        return Tokens(self._records, numbers)

    # Ranges of tokens and tails are half-open and end at `extent` or before.

    def has_text_between(self, start: int, stop: int) -> bool:
        """Return whether the records set any text free."""
        return self._records.has_text(start, stop)

    def text_between(self, start: int, stop: int) -> str:
        """Return the text of the records, in one piece."""
        return self._records.text(start, stop)

    def tokens_between(self, start: int, stop: int) -> Tokens:
        """Return the tokens among the records: a view."""
        return Tokens(self._records, self._records.token_numbers(start, stop))

    def records_between(self, start: int, stop: int) -> Iterator[Token | Tail]:
        """Yield the records, each made when it is asked for."""
        return self._records.records(start, stop)

    def subscribe(self, on_wake: Callable[[], None]) -> None:
        self._subscribers[on_wake] = None

    def unsubscribe(self, on_wake: Callable[[], None]) -> None:
        self._subscribers.pop(on_wake, None)

    @property
    def num_subscribers(self) -> int:
        return len(self._subscribers)

    def wake(self) -> None:
        """Tell all readers to look again, in their order. Called on the readers' thread only."""
        for on_wake in tuple(self._subscribers):
            on_wake()


def _since(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
