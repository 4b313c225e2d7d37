"""The log of one generation.

Every generation is an append-only log, and every client is a `Reader` with a cursor into it. The
engine appends without knowing its readers.

Rules of the log:

* A record's sequence number is its index. It never changes and is never reused.
* The log ends exactly once, with `Finished` or `Failed`, which is its last record.
* The engine's thread appends, the event loop's thread reads. A record becomes visible once it is
  complete, and `wake` is called on the readers' thread, so no lock is needed.
* Records are stored in arrays, which the garbage collector does not traverse: see `records.py`.
* Either thread may end the log: the event loop does so when the engine is stuck. The first one
  wins. Records that the engine appends after that are ignored; its next check sees the end.
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
"""Memory of a log without its columns and metadata: the object, its id, start and end records."""
_LABEL_BYTES = 200
"""Memory of a metadata entry beyond its UTF-8 text: two string objects and a dictionary entry."""


class FinishReason(StrEnum):
    """Why a generation ended: a stop condition, the token limit, tool calls, or a cancel."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Finished:
    """Terminal record of a generation that ended without an error; `at` in monotonic seconds."""

    finish_reason: FinishReason
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal record of a generation that ended with an error; `at` in monotonic seconds."""

    error: StreamingError
    at: float


Record = Token | Tail | Finished | Failed


@dataclass(frozen=True, slots=True)
class Queued:
    """A position in the queue; 0 is next. The wait is None until throughput has been measured."""

    position: int
    estimated_wait_s: float | None


@dataclass(frozen=True, slots=True)
class Started:
    """The start of a generation: its prompt tokens, and how many the prefix cache had."""

    prompt_tokens: int
    cached_tokens: int
    at: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a generation so far."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of the phases of a generation, in seconds; None for a phase that did not complete.

    Attributes:
        queue_s: from submission to start.
        prefill_s: from start to first token.
        ttft_s: from submission to first token.
        total_s: from submission to end.
        tokens_per_s: decode rate, over the tokens after the first.
    """

    queue_s: float | None
    prefill_s: float | None
    ttft_s: float | None
    total_s: float | None
    tokens_per_s: float | None


@dataclass(slots=True, eq=False)
class _Ending:
    """A terminal record; its sequence number is the number of records before it.

    They are counted after the ending is in the log, since the engine may append until then. The
    thread that asks first counts. `list.append` is atomic, so all threads see the same first count.
    """

    record: Finished | Failed
    _counts: list[int] = field(default_factory=list)

    def seq(self, num_records: int) -> int:
        """Return the sequence number.

        Args:
            num_records: current number of records, read after the ending was seen.
        """
        if not self._counts:
            self._counts.append(num_records)
        return self._counts[0]


@dataclass(slots=True, eq=False, kw_only=True)
class Generation:
    """The append-only log of one generation.

    Attributes:
        generation_id: unguessable id; with the caller's API key it is enough to resume.
        caller: the caller that may read, resume and cancel the generation.
        model: id of the model that generates it.
        created_at: Unix seconds, for display.
        submitted_at: monotonic seconds, for timings.
        prompt_tokens: number of prompt tokens, known at admission.
        output_format: delimiters of tool calls and reasoning, for an `OutputParser`.
        metadata: the client's labels, returned unchanged.
        queued: position in the queue; None once the generation has started or ended.
        started: set when the generation leaves the queue; None before.
        scored_prompt: the prompt's tokens with log probabilities, if the request asks for them; set
            before the first token is appended. The first prompt token has no log probability.
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

    # Called by the engine.

    def start(self, *, cached_tokens: int, at: float) -> None:
        """Record the start; a sequence that restarts after preemption keeps its first start."""
        if self.started is None:
            self.started = Started(self.prompt_tokens, cached_tokens, at)
        self.queued = None

    def append(self, record: Token | Tail) -> None:
        """Append a record, unless the log has ended. Call on the engine's thread only."""
        if self._endings:
            return
        self._records.append(record)

    def score_prompt(self, tokens: Iterable[Token]) -> None:
        """Set the prompt's tokens with their log probabilities, before the first record."""
        assert not len(self._records), "the prompt is scored before the first token"
        self.scored_prompt = Tokens.of(tokens)

    def end(self, record: Finished | Failed) -> bool:
        """End the log; return False if it has already ended. Safe on any thread."""
        if self._endings:
            return False
        # Both threads may get here. `list.append` is atomic, and the first ending in the list wins.
        ending = _Ending(record)
        self._endings.append(ending)
        if self._endings[0] is not ending:
            return False
        ending.seq(len(self._records))
        self.queued = None
        return True

    # Called by readers.

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the log in bytes; an upper bound."""
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
        """Number of tokens and tails, and the terminal record or None: a consistent snapshot."""
        # Count before checking for the ending. A record that the engine appends while another
        # thread ends the log may be too late, and a reader that counted it would wait forever.
        num_records = len(self._records)
        if not self._endings:
            return num_records, None
        ending = self._endings[0]
        return ending.seq(len(self._records)), ending.record

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest record; -1 if the log is empty."""
        num_records, outcome = self.extent
        return num_records - (outcome is None)

    @property
    def outcome(self) -> Finished | Failed | None:
        """The terminal record; None while the log is open."""
        return self._endings[0].record if self._endings else None

    @property
    def is_ended(self) -> bool:
        """Whether the log has its terminal record."""
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
        """Token counts so far."""
        cached = 0 if self.started is None else self.started.cached_tokens
        return Usage(self.prompt_tokens, cached, len(self.tokens))

    @property
    def timings(self) -> Timings:
        """Durations so far, in seconds."""
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
        """Return all records after `cursor`; an empty list if there are none."""
        return list(self.records_after(cursor))

    def records_after(self, cursor: int) -> Iterator[Record]:
        """Return an iterator over the current records after `cursor`, each created on demand."""
        num_records, outcome = self.extent
        start = min(cursor + 1, num_records)
        ending = () if outcome is None or cursor >= num_records else (outcome,)
        return chain(self.records_between(start, num_records), ending)

    def tokens_at(self, numbers: Sequence[int]) -> Tokens:
        """Return a view of the tokens at these record numbers, which are in ascending order."""
        return Tokens(self._records, numbers)

    # Ranges of tokens and tails are half-open, and `stop` is at most `extent`.

    def has_text_between(self, start: int, stop: int) -> bool:
        """Return whether any of the records has text."""
        return self._records.has_text(start, stop)

    def text_between(self, start: int, stop: int) -> str:
        """Return the joined text of the records."""
        return self._records.text(start, stop)

    def tokens_between(self, start: int, stop: int) -> Tokens:
        """Return a view of the tokens among the records."""
        return Tokens(self._records, self._records.token_numbers(start, stop))

    def records_between(self, start: int, stop: int) -> Iterator[Token | Tail]:
        """Return an iterator over the records, each created on demand."""
        return self._records.records(start, stop)

    def subscribe(self, on_wake: Callable[[], None]) -> None:
        """Call `on_wake` at each `wake`."""
        self._subscribers[on_wake] = None

    def unsubscribe(self, on_wake: Callable[[], None]) -> None:
        """Stop calling `on_wake`."""
        self._subscribers.pop(on_wake, None)

    @property
    def num_subscribers(self) -> int:
        """Number of subscribed readers."""
        return len(self._subscribers)

    def wake(self) -> None:
        """Call all subscribers, in the order of subscription. Call on the readers' thread only."""
        for on_wake in tuple(self._subscribers):
            on_wake()


def _since(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
