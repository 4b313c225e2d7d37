"""The log of one generation.

Every generation is an append-only log; every client is a reader with a cursor. The engine appends
and never knows who reads.

Rules of the log:

* A record's sequence number is its index. It never changes and is never used twice.
* The log ends exactly once, with `Finished` or `Failed`. Nothing follows it.
* The engine's thread appends; the event loop's thread reads. Appending to a list and reading its
  length are atomic, and `wake` is called on the readers' thread, so no lock is needed.
* Either thread may end the log: the loop does where the engine is stuck. The first one wins. What
  the engine appends after that is ignored: it learns of the end when it looks next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from streaming.errors import StreamingError
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


@dataclass(frozen=True, slots=True)
class _Ending:
    """A terminal record, and its sequence number: that many records are before it."""

    seq: int
    record: Finished | Failed


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
    _records: list[Token | Tail] = field(default_factory=list)
    _endings: list[_Ending] = field(default_factory=list)
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
        """Add text to the log, unless it has been ended meanwhile. The engine's thread only."""
        if self._endings:
            return
        self.num_bytes += _record_bytes(record)
        self._records.append(record)

    def score_prompt(self, tokens: Iterable[Token]) -> None:
        """Take the prompt's tokens with their log probabilities, before the first record."""
        assert not self._records, "readers that have seen a token have seen the prompt"
        self.scored_prompt = tuple(tokens)
        self.num_bytes += sum(map(_record_bytes, self.scored_prompt))

    def end(self, record: Finished | Failed) -> bool:
        """Close the log; return False where it had been closed already. On any thread."""
        if self._endings:
            return False
        # Both threads may have come here: to append is atomic, and the first in the list counts.
        ending = _Ending(len(self._records), record)
        self._endings.append(ending)
        if self._endings[0] is not ending:
            return False
        self.num_bytes += _RECORD_BYTES
        self.queued = None
        return True

    # The readers' side.

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest record; -1 when there is none."""
        return self._endings[0].seq if self._endings else len(self._records) - 1

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
        return join_text(self.read_after(-1))

    @property
    def tokens(self) -> tuple[Token, ...]:
        """All tokens so far."""
        return tuple(record for record in self.read_after(-1) if isinstance(record, Token))

    @property
    def usage(self) -> Usage:
        cached = 0 if self.started is None else self.started.cached_tokens
        num_records = self._endings[0].seq if self._endings else len(self._records)
        has_tail = num_records > 0 and isinstance(self._records[num_records - 1], Tail)
        return Usage(self.prompt_tokens, cached, num_records - has_tail)

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
        if not self._endings:
            return [*self._records[cursor + 1 :]]
        ending = self._endings[0]
        records: list[Record] = [*self._records[cursor + 1 : ending.seq]]
        return [*records, ending.record] if cursor < ending.seq else records

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


def join_text(records: Iterable[Record]) -> str:
    """Return the text of records, of whatever kind."""
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
