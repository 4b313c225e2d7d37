"""Tokens of a log as a lazy sequence, which readers receive instead of a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, starmap
from typing import overload

from streaming.log.records import RecordColumns, Scores, Token


class Tokens(Sequence[Token]):
    """A view of some tokens of a log, of constant size.

    It contains the tokens that existed when it was created, and creates each `Token` on access.
    Slices are views, too.

    Args:
        columns: stores the tokens.
        numbers: record numbers of the tokens, in ascending order.
    """

    __slots__ = ("_columns", "_numbers")
    __hash__ = None  # type: ignore[assignment]  # equal to a tuple of the same tokens

    def __init__(self, columns: RecordColumns, numbers: Sequence[int]) -> None:
        self._columns = columns
        self._numbers = numbers

    @classmethod
    def of(cls, tokens: Iterable[Token]) -> Tokens:
        """Return a view of these tokens in new columns."""
        columns = RecordColumns()
        for token in tokens:
            columns.append(token)
        return cls(columns, range(len(columns)))

    @property
    def num_bytes(self) -> int:
        """Memory of the columns in bytes, which other views may share."""
        return self._columns.num_bytes

    @property
    def ids(self) -> list[int]:
        """Ids of the tokens."""
        return list(chain.from_iterable(starmap(self._columns.token_ids, self._blocks)))

    @property
    def text(self) -> str:
        """Joined text of the tokens."""
        return "".join(starmap(self._columns.text, self._blocks))

    def texts(self) -> Iterator[str]:
        """Return an iterator over the text of each token."""
        return chain.from_iterable(starmap(self._columns.texts, self._blocks))

    def scores(self) -> Iterator[Scores]:
        """Return an iterator over the scores of each token; empty for a token without any."""
        return chain.from_iterable(starmap(self._columns.scores, self._blocks))

    def time_of(self, index: int) -> float:
        """Return the time at which the token at `index` was generated, in monotonic seconds."""
        return self._columns.time(self._numbers[index])

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Token]:
        for block in self._blocks:
            for record in self._columns.records(*block):
                assert isinstance(record, Token)
                yield record

    @overload
    def __getitem__(self, index: int) -> Token: ...
    @overload
    def __getitem__(self, index: slice) -> Tokens: ...
    def __getitem__(self, index: int | slice) -> Token | Tokens:
        if isinstance(index, slice):
            return Tokens(self._columns, self._numbers[index])
        number = self._numbers[index]
        [token] = self._columns.records(number, number + 1)
        assert isinstance(token, Token)
        return token

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(token == each for token, each in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Tokens.of({list(self)!r})"

    @property
    def _blocks(self) -> list[tuple[int, int]]:
        """The fewest half-open ranges of records that cover this view."""
        numbers = self._numbers
        if isinstance(numbers, range) and numbers.step == 1:
            return [(numbers.start, numbers.stop)]
        blocks: list[tuple[int, int]] = []
        for number in numbers:
            if blocks and blocks[-1][1] == number:
                blocks[-1] = (blocks[-1][0], number + 1)
            else:
                blocks.append((number, number + 1))
        return blocks
