"""Stores the tokens of a log in columns.

A log may hold many thousand tokens, each with several log probabilities. As objects they would take
more than a kilobyte each, and Python's garbage collector would traverse all of them in each full
collection, while all threads wait. `RecordColumns` therefore stores them in arrays, which the
collector does not traverse, and creates `Token` objects on reading.

Columns of `n` records, which are tokens and tails:

* ids (n,) int32: token id; -1 for a tail.
* times (n,) float64: monotonic seconds.
* text: UTF-8 bytes of all records, concatenated. text_ends (n,) uint32: end offset of each record.
* scores: pairs of token id and log probability; for each record the chosen token's, then those of
  the alternatives. score_ends (n,) uint32: end offset of each record. Created with the first token
  that has log probabilities.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat, starmap

_TAIL_ID = -1

Scores = tuple[tuple[int, float], ...]
"""Pairs of token id and log probability: the chosen token, then the most likely, best first."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token id and its natural-log probability under the model's unmodified distribution."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probability of the chosen token, and of the most likely tokens, best first."""

    chosen: Logprob
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text that it completes, which may be empty.

    `at` is in monotonic seconds, as in all records.
    """

    token_id: int
    text: str
    at: float
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """Text held back as a possible stop string, and released at the end without a token."""

    text: str
    at: float


class RecordColumns:
    """Tokens and tails in the order of arrival. Ranges of records are half-open.

    One thread appends; any thread reads, without a lock. `len` grows last, when a record is
    complete. A read copies a slice of a column, which is one operation under the interpreter's
    lock. It does not use a `memoryview`, since an array cannot grow while one exists.
    """

    __slots__ = ("_ids", "_num_records", "_scores", "_tails", "_text", "_text_ends", "_times")

    def __init__(self) -> None:
        self._ids = array("i")
        self._times = array("d")
        self._text = bytearray()
        self._text_ends = array("I")
        self._scores: _ScoreColumns | None = None
        self._tails: list[int] = []  # record numbers; the engine writes one at most
        self._num_records = 0

    def __len__(self) -> int:
        return self._num_records

    @property
    def num_bytes(self) -> int:
        """Memory of the columns in bytes, including spare capacity."""
        columns = (self, self._ids, self._times, self._text, self._text_ends, self._tails)
        scores = self._scores
        return sum(map(sys.getsizeof, columns)) + (0 if scores is None else scores.num_bytes)

    def append(self, record: Token | Tail) -> None:
        """Append a record; if this raises, the columns are unchanged."""
        try:
            self._append(record)
        except BaseException:
            self._truncate(self._num_records)
            raise
        self._num_records += 1

    def _append(self, record: Token | Tail) -> None:
        logprobs: TokenLogprobs | None = None
        if isinstance(record, Token):
            assert record.token_id >= 0
            self._ids.append(record.token_id)
            logprobs = record.logprobs
        else:
            self._ids.append(_TAIL_ID)
            self._tails.append(self._num_records)
        if logprobs is not None and self._scores is None:
            self._scores = _ScoreColumns(num_records=self._num_records)
        if self._scores is not None:
            self._scores.append(logprobs)
        self._times.append(record.at)
        self._text += record.text.encode("utf-8", "surrogatepass")
        self._text_ends.append(len(self._text))

    def _truncate(self, num_records: int) -> None:
        for column in (self._ids, self._times, self._text_ends):
            del column[num_records:]
        del self._text[self._text_start(num_records) :]
        del self._tails[self._num_tails(num_records) :]
        if self._scores is not None:
            self._scores.truncate(num_records)

    # Reading. `stop` is at most `len`.

    def has_text(self, start: int, stop: int) -> bool:
        """Return whether any record in the range has text."""
        return self._text_start(start) < self._text_start(stop)

    def text(self, start: int, stop: int) -> str:
        """Return the joined text of the records in the range."""
        return _decode(self._text[self._text_start(start) : self._text_start(stop)])

    def texts(self, start: int, stop: int) -> Iterator[str]:
        """Yield the text of each record in the range."""
        first = begin = self._text_start(start)
        utf8 = self._text[first : self._text_start(stop)]
        text = _decode(utf8)
        is_ascii = len(text) == len(utf8)  # then offsets in bytes are offsets in characters
        for end in self._text_ends[start:stop]:
            if is_ascii:
                yield text[begin - first : end - first]
            else:
                yield _decode(utf8[begin - first : end - first])
            begin = end

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Return the token ids in the range, without tails."""
        return [token_id for token_id in self._ids[start:stop] if token_id != _TAIL_ID]

    def token_numbers(self, start: int, stop: int) -> Sequence[int]:
        """Return the record numbers of the tokens in the range, without tails."""
        tails = self._tails[self._num_tails(start) : self._num_tails(stop)]
        if tails and tails[-1] == stop - 1:
            del tails[-1]
            stop -= 1
        if tails:
            return [number for number in range(start, stop) if number not in tails]
        return range(start, stop)

    def time(self, number: int) -> float:
        """Return the time of a record, in monotonic seconds."""
        return self._times[number]

    def records(self, start: int, stop: int) -> Iterator[Token | Tail]:
        """Yield the records in the range, each created on demand."""
        for token_id, text, at, scores in zip(
            self._ids[start:stop],
            self.texts(start, stop),
            self._times[start:stop],
            self.scores(start, stop),
            strict=True,
        ):
            if token_id == _TAIL_ID:
                yield Tail(text, at)
            else:
                yield Token(token_id, text, at, _to_logprobs(scores) if scores else None)

    def scores(self, start: int, stop: int) -> Iterator[Scores]:
        """Return an iterator over the scores of each record; empty for a record without any."""
        if self._scores is None:
            return repeat((), stop - start)
        return self._scores.rows(start, stop)

    def _text_start(self, number: int) -> int:
        return self._text_ends[number - 1] if number else 0

    def _num_tails(self, stop: int) -> int:
        """Return the number of tails among the first `stop` records."""
        return bisect_left(self._tails, stop)


class _ScoreColumns:
    """Log probabilities of records; the first `num_records` records have none."""

    __slots__ = ("_ends", "_ids", "_logprobs")

    def __init__(self, *, num_records: int) -> None:
        self._ids = array("i")
        self._logprobs = array("d")
        self._ends = array("I", (0,)) * num_records

    @property
    def num_bytes(self) -> int:
        return sum(map(sys.getsizeof, (self, self._ids, self._logprobs, self._ends)))

    def append(self, logprobs: TokenLogprobs | None) -> None:
        if logprobs is not None:
            for logprob in (logprobs.chosen, *logprobs.top):
                self._ids.append(logprob.token_id)
                self._logprobs.append(logprob.logprob)
        self._ends.append(len(self._ids))

    def truncate(self, num_records: int) -> None:
        del self._ends[num_records:]
        num_scores = self._ends[-1] if self._ends else 0
        del self._ids[num_scores:]
        del self._logprobs[num_scores:]

    def rows(self, start: int, stop: int) -> Iterator[Scores]:
        """Yield the scores of each record in the range."""
        ends = self._ends[start:stop]
        begin = self._ends[start - 1] if start else 0
        last = ends[-1] if ends else begin
        scores = zip(self._ids[begin:last], self._logprobs[begin:last], strict=True)
        for end in ends:
            yield tuple(islice(scores, end - begin))
            begin = end


def _to_logprobs(scores: Scores) -> TokenLogprobs:
    chosen, *top = starmap(Logprob, scores)
    return TokenLogprobs(chosen, tuple(top))


def _decode(utf8: bytearray) -> str:
    return utf8.decode("utf-8", "surrogatepass")
