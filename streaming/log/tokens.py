"""Tokens of a log as a sequence: what readers are given, and what nobody has to make in advance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, starmap
from typing import overload

from streaming.log.records import RecordColumns, Scores, Token


class Tokens(Sequence[Token]):
    """The tokens of a part of a log: a view, whose size does not depend on their number.

    It shows those that were there when it was made, and makes each when it is asked for. Slices are
    views, too.

    Args:
        columns: holds the tokens.
        numbers: their record numbers.
    """

    __slots__ = ("_columns", "_numbers")
    __hash__ = None  # type: ignore[assignment]  # equals a tuple of the same tokens

    def __init__(self, columns: RecordColumns, numbers: Sequence[int]) -> None:
        self._columns = columns
        self._numbers = numbers

    @classmethod
    def of(cls, tokens: Iterable[Token]) -> Tokens:
        """Return these tokens, in columns of their own."""
        columns = RecordColumns()
        for token in tokens:
            columns.append(token)
        return cls(columns, range(len(columns)))

    @property
    def num_bytes(self) -> int:
        """Memory that the columns take, which others may share."""
        return self._columns.num_bytes

    @property
    def ids(self) -> list[int]:
        return list(chain.from_iterable(starmap(self._columns.token_ids, self._blocks)))

    @property
    def text(self) -> str:
        """The text of these tokens, joined."""
        return "".join(starmap(self._columns.text, self._blocks))

    def texts(self) -> Iterator[str]:
        """Yield the text of each token."""
        return chain.from_iterable(starmap(self._columns.texts, self._blocks))

    def scores(self) -> Iterator[Scores]:
        """Yield the scores of each token, none where it has none."""
        return chain.from_iterable(starmap(self._columns.scores, self._blocks))

    def time_of(self, index: int) -> float:
        """Return when a token came, in monotonic seconds."""
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
        """The fewest ranges of records, half-open, that make up this view."""
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
