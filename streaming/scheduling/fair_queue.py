"""Who is served next: a fair share for each caller, first come first served within one.

Each caller has a counter of the tokens that it was served, one for each priority, and the one with
the smallest is next: a caller with a hundred requests does not starve another with one. One that
joins those who wait starts level with them: it has no claim on what it did not ask for. (Virtual
token counter: Sheng et al. 2024, arXiv:2401.00588.)

A higher priority goes first, but not for ever: a priority that was passed over `MAX_PASSED` times
has the next place.

Looking at who is next costs a step for each caller, however many sequences wait.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from streaming.sequence import Sequence

MAX_PASSED = 32
"""Sequences of higher priority that are taken out while one of a lower priority waits."""


@dataclass(slots=True)
class _Caller:
    """What a caller has at one priority.

    Attributes:
        places: of each waiting sequence, its number in the order of arrival; one that is put back
            has a number before all others.
        here: waiting sequences whose clients follow them, with their places, in order.
        gone: the same, of those that nobody follows.
    """

    places: dict[Sequence, int] = field(default_factory=dict)
    here: list[tuple[int, Sequence]] = field(default_factory=list)
    gone: list[tuple[int, Sequence]] = field(default_factory=list)
    num_live: int = 0
    served_tokens: float = 0.0
    _first_place: int = 0
    _last_place: int = -1

    def append(self, sequence: Sequence) -> None:
        self._last_place += 1
        self._insert(sequence, self._last_place)

    def prepend(self, sequence: Sequence) -> None:
        self._first_place -= 1
        self._insert(sequence, self._first_place)

    def remove(self, sequence: Sequence) -> None:
        line = self._line_of(sequence)
        del line[bisect_left(line, self.places.pop(sequence), key=_place)]

    def move(self, sequence: Sequence, *, is_detached: bool) -> None:
        """Take that a waiting sequence's client is gone, or back; it keeps its place."""
        place = self.places[sequence]
        self.remove(sequence)
        sequence.is_detached = is_detached
        self._insert(sequence, place)

    def _insert(self, sequence: Sequence, place: int) -> None:
        self.places[sequence] = place
        insort(self._line_of(sequence), (place, sequence), key=_place)

    def _line_of(self, sequence: Sequence) -> list[tuple[int, Sequence]]:
        return self.gone if sequence.is_detached else self.here


class FairQueue:
    """Waiting sequences, iterated in the order in which they would be served.

    A sequence of higher priority goes before all of lower priority, up to `MAX_PASSED` times in a
    row; one whose client is gone goes behind all others. A caller is forgotten once nothing of it
    is alive and nobody in line was served less: until then it could come back level with them, time
    and again, and pass them by.
    """

    def __init__(self) -> None:
        self._callers: dict[tuple[str, int], _Caller] = {}
        self._departed: dict[tuple[str, int], float] = {}
        """Tokens served to callers without live sequences, where somebody in line has had less."""
        self._num_waiting = 0
        self._num_passed: dict[int, int] = {}
        """By priority: how many of higher ones were taken since one of it was."""

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        """Yield sequences in the order of service as it stands now.

        Each one is taken to be served its known tokens, so callers alternate. The queue must not
        change meanwhile. The first costs a step for each caller, each further one a few.
        """
        num_passed = dict(self._num_passed)
        lines = self._lines()
        heads = {priority: next(line) for priority, line in lines.items()}
        while heads:
            priority = _next_priority(heads, num_passed)
            yield heads[priority]
            num_passed = _pass(num_passed, heads, priority)
            if (head := next(lines[priority], None)) is None:
                del heads[priority]
            else:
                heads[priority] = head
        gone: dict[int, list[_Caller]] = {}
        for (_, priority), caller in self._callers.items():
            if caller.gone:
                gone.setdefault(priority, []).append(caller)
        for priority in sorted(gone, reverse=True):
            yield from _alternate((caller, caller.gone) for caller in gone[priority])

    @property
    def head(self) -> Sequence | None:
        """The sequence that is next."""
        return next(iter(self), None)

    def enter(self, sequence: Sequence) -> None:
        """Take a new sequence, behind the others of its caller."""
        caller = self._join(sequence)
        caller.num_live += 1
        caller.append(sequence)
        self._num_waiting += 1

    def put_back(self, sequence: Sequence, *, behind: Sequence | None = None) -> None:
        """Take a sequence that was running, before the others of its caller.

        Args:
            behind: who gets its place; of the same priority, its caller goes before this one.
        """
        caller = self._join(sequence)
        caller.prepend(sequence)
        self._num_waiting += 1
        if behind is not None and behind.priority == sequence.priority:
            served_tokens = self._callers[_key_of(behind)].served_tokens
            caller.served_tokens = max(caller.served_tokens, served_tokens + 1)

    def take(self, sequence: Sequence) -> None:
        """Let a sequence go that runs from now on; those of lower priority are passed over."""
        if not sequence.is_detached:
            self._num_passed = _pass(self._num_passed, self._priorities(), sequence.priority)
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a waiting sequence go that has ended."""
        self._callers[_key_of(sequence)].remove(sequence)
        self._num_waiting -= 1

    def set_detached(self, sequence: Sequence, *, is_detached: bool) -> None:
        """Take that the client of a live sequence is gone, or back again."""
        caller = self._callers[_key_of(sequence)] if is_detached else self._join(sequence)
        if sequence in caller.places:
            caller.move(sequence, is_detached=is_detached)
        else:
            sequence.is_detached = is_detached

    def charge(self, sequence: Sequence, *, num_tokens: int) -> None:
        """Count what a running sequence was served."""
        self._callers[_key_of(sequence)].served_tokens += num_tokens

    def claim(self, sequence: Sequence) -> tuple[int, float]:
        """Return how its caller stands; of two live sequences the smaller claim is served first."""
        return -sequence.priority, self._callers[_key_of(sequence)].served_tokens

    def leave(self, sequence: Sequence) -> None:
        """Count a sequence out that has ended."""
        key = _key_of(sequence)
        caller = self._callers[key]
        caller.num_live -= 1
        if not caller.num_live:
            del self._callers[key]
            self._departed[key] = caller.served_tokens
            self._forget_departed(sequence.priority)

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that every live sequence is counted for its caller."""
        waiting = list(self)
        num_live = Counter(_key_of(sequence) for sequence in (*waiting, *running))
        assert num_live == {key: caller.num_live for key, caller in self._callers.items()}
        assert len(waiting) == self._num_waiting
        for caller in self._callers.values():
            assert all(not sequence.is_detached for _, sequence in caller.here)
            assert all(sequence.is_detached for _, sequence in caller.gone)
            places = [*map(_place, caller.here), *map(_place, caller.gone)]
            assert sorted(places) == sorted(caller.places.values())

    def _lines(self) -> dict[int, Iterator[Sequence]]:
        """Return the sequences of each priority that are followed, callers alternating."""
        callers: dict[int, list[_Caller]] = {}
        for (_, priority), caller in self._callers.items():
            if caller.here:
                callers.setdefault(priority, []).append(caller)
        return {
            priority: _alternate((caller, caller.here) for caller in each)
            for priority, each in callers.items()
        }

    def _priorities(self) -> set[int]:
        return {priority for (_, priority), caller in self._callers.items() if caller.here}

    def _join(self, sequence: Sequence) -> _Caller:
        """Return a sequence's caller, lifted to those in line if it was not one of them.

        Where nobody is in line, it starts level with whoever was served most: nobody that runs now
        has to wait later until it has caught up.
        """
        key = _key_of(sequence)
        self._forget_departed(sequence.priority)
        caller = self._callers.get(key)
        if caller is None:
            caller = self._callers[key] = _Caller(served_tokens=self._departed.pop(key, 0.0))
        if not caller.here:
            others = [
                other
                for (_, priority), other in self._callers.items()
                if priority == sequence.priority
            ]
            in_line = [other.served_tokens for other in others if other.here]
            level = min(in_line) if in_line else max(other.served_tokens for other in others)
            caller.served_tokens = max(caller.served_tokens, level)
        return caller

    def _forget_departed(self, priority: int) -> None:
        """Forget those that were served no more than anybody in line."""
        level = min(
            (
                caller.served_tokens
                for (_, own), caller in self._callers.items()
                if own == priority and caller.here
            ),
            default=math.inf,
        )
        self._departed = {
            key: served
            for key, served in self._departed.items()
            if key[1] != priority or served > level
        }


def _alternate(
    lines: Iterable[tuple[_Caller, list[tuple[int, Sequence]]]],
) -> Iterator[Sequence]:
    """Merge callers' sequences by what each caller will have been served before.

    Of equals, the caller that came first goes first: a newcomer starts level, so with any other
    rule a flow of newcomers could pass by one that waits for ever.
    """

    def ranked(
        index: int, caller: _Caller, line: list[tuple[int, Sequence]]
    ) -> Iterator[tuple[float, int, int, Sequence]]:
        served = caller.served_tokens
        for number, (_, sequence) in enumerate(line):
            yield served, number, index, sequence
            served += sequence.num_tokens

    merged = heapq.merge(
        *(ranked(index, caller, line) for index, (caller, line) in enumerate(lines))
    )
    return (sequence for *_, sequence in merged)


def _next_priority(waiting: Iterable[int], num_passed: dict[int, int]) -> int:
    """Return the highest priority, or the one passed over most, where that is too often."""
    passed_most = max(waiting, key=lambda priority: num_passed.get(priority, 0))
    return passed_most if num_passed.get(passed_most, 0) >= MAX_PASSED else max(waiting)


def _pass(num_passed: dict[int, int], waiting: Iterable[int], taken: int) -> dict[int, int]:
    """Return the counts after one of priority `taken` was taken; who does not wait has none."""
    return {
        priority: num_passed.get(priority, 0) + (priority < taken)
        for priority in waiting
        if priority != taken
    }


def _key_of(sequence: Sequence) -> tuple[str, int]:
    return sequence.caller, sequence.priority


def _place(entry: tuple[int, Sequence]) -> int:
    return entry[0]
