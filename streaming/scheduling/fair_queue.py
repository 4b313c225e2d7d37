"""Orders the waiting sequences: fair between callers, first come first served within one.

Each caller has a virtual token counter per priority, which counts the tokens it was served. The
caller with the smallest counter is next, so a caller with a hundred requests does not starve a
caller with one. A caller that becomes active has its counter lifted to the smallest counter of
those that wait: time without requests earns no credit. (Virtual token counter: Sheng et al. 2024,
arXiv:2401.00588.)

Higher priorities go first, but not without limit: a priority that was passed over `MAX_PASSED`
times is next.

Finding the next sequence takes time proportional to the number of callers, however many sequences
wait. The scheduler is the only caller of this module.
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
"""Sequences of higher priority that may start while one of a lower priority waits."""


@dataclass(slots=True)
class _Caller:
    """The state of one caller at one priority.

    Attributes:
        positions: the position of each waiting sequence in the order of arrival. A sequence that
            is requeued gets a position before all others.
        attached: waiting sequences that are not detached, with their positions, in order.
        detached: waiting sequences whose last subscriber has left, likewise.
        num_live: sequences that wait or run.
        counter: the virtual token counter.
    """

    positions: dict[Sequence, int] = field(default_factory=dict)
    attached: list[tuple[int, Sequence]] = field(default_factory=list)
    detached: list[tuple[int, Sequence]] = field(default_factory=list)
    num_live: int = 0
    counter: float = 0.0
    _first_position: int = 0
    _last_position: int = -1

    def append(self, sequence: Sequence) -> None:
        self._last_position += 1
        self._insert(sequence, self._last_position)

    def prepend(self, sequence: Sequence) -> None:
        self._first_position -= 1
        self._insert(sequence, self._first_position)

    def remove(self, sequence: Sequence) -> None:
        line = self._line_of(sequence)
        del line[bisect_left(line, self.positions.pop(sequence), key=_position)]

    def set_detached(self, sequence: Sequence, *, is_detached: bool) -> None:
        """Move a waiting sequence to the other list; it keeps its position."""
        position = self.positions[sequence]
        self.remove(sequence)
        sequence.is_detached = is_detached
        self._insert(sequence, position)

    def _insert(self, sequence: Sequence, position: int) -> None:
        self.positions[sequence] = position
        insort(self._line_of(sequence), (position, sequence), key=_position)

    def _line_of(self, sequence: Sequence) -> list[tuple[int, Sequence]]:
        return self.detached if sequence.is_detached else self.attached


class FairQueue:
    """Waiting sequences, iterated in the order in which they would be served.

    Higher priorities go before lower ones, up to `MAX_PASSED` times in a row. Detached sequences,
    whose clients have left, go after all others. The queue also counts running sequences: a caller
    is active while it has any that wait or run.
    """

    def __init__(self) -> None:
        self._callers: dict[tuple[str, int], _Caller] = {}
        # If the counter of a caller were dropped with its last request, the caller could return at
        # once with the smallest counter, again and again, and overtake those that wait. So it is
        # kept until every waiting caller has been served as much.
        self._idle_counters: dict[tuple[str, int], float] = {}
        """Counters of callers that have no live sequence, where a waiting one is below them."""
        self._num_waiting = 0
        self._num_passed: dict[int, int] = {}
        """By priority: sequences of higher priority that started since one of it did."""

    def __len__(self) -> int:
        """Return the number of waiting sequences."""
        return self._num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        """Yield sequences in the order of service as it stands now.

        The order assumes that each sequence is served its present tokens, so callers alternate.
        The queue must not change during the iteration. The first item costs time proportional to
        the number of callers, each further one its logarithm.
        """
        # Replay on a copy what `start` would count, so that the order accounts for it.
        num_passed = dict(self._num_passed)
        lines = self._attached_by_priority()
        heads = {priority: next(line) for priority, line in lines.items()}
        while heads:
            priority = _next_priority(heads, num_passed)
            yield heads[priority]
            num_passed = _count_passed(num_passed, heads, priority)
            if (head := next(lines[priority], None)) is None:
                del heads[priority]
            else:
                heads[priority] = head
        # Detached sequences come last at any priority: no client waits for their tokens.
        detached: dict[int, list[_Caller]] = {}
        for (_, priority), caller in self._callers.items():
            if caller.detached:
                detached.setdefault(priority, []).append(caller)
        for priority in sorted(detached, reverse=True):
            yield from _merge((caller, caller.detached) for caller in detached[priority])

    @property
    def head(self) -> Sequence | None:
        """The next sequence; None if nothing waits."""
        return next(iter(self), None)

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence behind the others of its caller."""
        caller = self._lift(sequence)
        caller.num_live += 1
        caller.append(sequence)
        self._num_waiting += 1

    def requeue(self, sequence: Sequence, *, behind: Sequence | None = None) -> None:
        """Put back a preempted sequence in front of the others of its caller.

        Args:
            sequence: it was running.
            behind: the waiting sequence it was preempted for. At the same priority, the caller of
                `behind` is served first.
        """
        caller = self._lift(sequence)
        caller.prepend(sequence)
        self._num_waiting += 1
        if behind is not None and behind.priority == sequence.priority:
            # Without this, the preempted sequence could be the head again and take its place back.
            counter = self._callers[_key_of(behind)].counter
            caller.counter = max(caller.counter, counter + 1)

    def start(self, sequence: Sequence) -> None:
        """Remove a sequence that runs from now on; lower priorities count as passed over."""
        # A detached sequence starts only when nothing attached waits, so it passes nothing over.
        if not sequence.is_detached:
            self._num_passed = _count_passed(
                self._num_passed, self._attached_priorities(), sequence.priority
            )
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a waiting sequence that has ended."""
        self._callers[_key_of(sequence)].remove(sequence)
        self._num_waiting -= 1

    def set_detached(self, sequence: Sequence, *, is_detached: bool) -> None:
        """Mark a live sequence as detached: its client is gone; or as attached again."""
        # A caller whose sequences were all detached was idle, and is lifted when one comes back.
        caller = self._callers[_key_of(sequence)] if is_detached else self._lift(sequence)
        if sequence in caller.positions:
            caller.set_detached(sequence, is_detached=is_detached)
        else:
            sequence.is_detached = is_detached

    def charge(self, sequence: Sequence, *, num_tokens: int) -> None:
        """Add tokens that a running sequence was served to its caller's counter."""
        self._callers[_key_of(sequence)].counter += num_tokens

    def sort_key(self, sequence: Sequence) -> tuple[int, float]:
        """Return a sort key for live sequences, by priority and counter; the smallest is next."""
        return -sequence.priority, self._callers[_key_of(sequence)].counter

    def finish(self, sequence: Sequence) -> None:
        """Uncount a sequence that has ended and been removed."""
        key = _key_of(sequence)
        caller = self._callers[key]
        caller.num_live -= 1
        if not caller.num_live:
            del self._callers[key]
            self._idle_counters[key] = caller.counter
            self._drop_idle_counters(sequence.priority)

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that every live sequence is counted for its caller."""
        waiting = list(self)
        num_live = Counter(_key_of(sequence) for sequence in (*waiting, *running))
        assert num_live == {key: caller.num_live for key, caller in self._callers.items()}
        assert len(waiting) == self._num_waiting
        for caller in self._callers.values():
            assert all(not sequence.is_detached for _, sequence in caller.attached)
            assert all(sequence.is_detached for _, sequence in caller.detached)
            positions = [*map(_position, caller.attached), *map(_position, caller.detached)]
            assert sorted(positions) == sorted(caller.positions.values())

    def _attached_by_priority(self) -> dict[int, Iterator[Sequence]]:
        """Return the attached sequences of each priority, in the order of service."""
        callers: dict[int, list[_Caller]] = {}
        for (_, priority), caller in self._callers.items():
            if caller.attached:
                callers.setdefault(priority, []).append(caller)
        return {
            priority: _merge((caller, caller.attached) for caller in each)
            for priority, each in callers.items()
        }

    def _attached_priorities(self) -> set[int]:
        return {priority for (_, priority), caller in self._callers.items() if caller.attached}

    def _lift(self, sequence: Sequence) -> _Caller:
        """Return a sequence's caller, with its counter lifted if it had nothing waiting.

        The counter is lifted to the smallest one of the callers that wait at this priority. If no
        caller waits, it is lifted to the largest one of the active callers: otherwise those that
        run now would later have to wait until the newcomer has caught up.
        """
        key = _key_of(sequence)
        self._drop_idle_counters(sequence.priority)
        caller = self._callers.get(key)
        if caller is None:
            caller = self._callers[key] = _Caller(counter=self._idle_counters.pop(key, 0.0))
        # A caller that has something waiting has been lifted already.
        if not caller.attached:
            others = [
                other
                for (_, priority), other in self._callers.items()
                if priority == sequence.priority
            ]
            # `others` includes the caller itself, so the maximum exists.
            waiting = [other.counter for other in others if other.attached]
            lifted = min(waiting) if waiting else max(other.counter for other in others)
            caller.counter = max(caller.counter, lifted)
        return caller

    def _drop_idle_counters(self, priority: int) -> None:
        """Drop the counters of idle callers that a lift would bring up to the same value."""
        smallest = min(
            (
                caller.counter
                for (_, own), caller in self._callers.items()
                if own == priority and caller.attached
            ),
            default=math.inf,
        )
        self._idle_counters = {
            key: counter
            for key, counter in self._idle_counters.items()
            if key[1] != priority or counter > smallest
        }


def _merge(lines: Iterable[tuple[_Caller, list[tuple[int, Sequence]]]]) -> Iterator[Sequence]:
    """Merge the callers' sequences by what each caller will have been served before them.

    Ties go to the caller that became active first. A new caller is lifted to the smallest counter,
    so with any other rule a flow of new callers could overtake a waiting one for ever.
    """

    def ranked(
        index: int, caller: _Caller, line: list[tuple[int, Sequence]]
    ) -> Iterator[tuple[float, int, int, Sequence]]:
        counter = caller.counter
        for number, (_, sequence) in enumerate(line):
            yield counter, number, index, sequence
            counter += sequence.num_tokens

    merged = heapq.merge(
        *(ranked(index, caller, line) for index, (caller, line) in enumerate(lines))
    )
    return (sequence for *_, sequence in merged)


def _next_priority(waiting: Iterable[int], num_passed: dict[int, int]) -> int:
    """Return the highest priority, or the one passed over most if that reached `MAX_PASSED`."""
    passed_most = max(waiting, key=lambda priority: num_passed.get(priority, 0))
    return passed_most if num_passed.get(passed_most, 0) >= MAX_PASSED else max(waiting)


def _count_passed(
    num_passed: dict[int, int], waiting: Iterable[int], started: int
) -> dict[int, int]:
    """Return the counts after a sequence of priority `started` started.

    That priority starts again from 0, and priorities without waiting sequences have no count.
    """
    return {
        priority: num_passed.get(priority, 0) + (priority < started)
        for priority in waiting
        if priority != started
    }


def _key_of(sequence: Sequence) -> tuple[str, int]:
    return sequence.caller, sequence.priority


def _position(entry: tuple[int, Sequence]) -> int:
    return entry[0]
