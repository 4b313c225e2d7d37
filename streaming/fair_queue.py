"""Who is served next: a fair share for each caller, first come first served within one.

Each caller has a counter of the tokens that it was served, one for each priority, and the one with
the smallest is next: a caller with a hundred requests does not starve another with one. One that
joins those who wait starts level with them: it has no claim on what it did not ask for. (Virtual
token counter: Sheng et al. 2024, arXiv:2401.00588.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from streaming.sequence import Sequence


@dataclass(slots=True)
class _Caller:
    """What a caller has at one priority."""

    waiting: list[Sequence] = field(default_factory=list)
    num_live: int = 0
    served_tokens: float = 0.0

    @property
    def is_in_line(self) -> bool:
        """Whether something waits whose client is there."""
        return any(not sequence.is_detached for sequence in self.waiting)


class FairQueue:
    """Waiting sequences, iterated in the order in which they would be served.

    A sequence of higher priority goes before all of lower priority; one whose client is gone goes
    behind all others. A caller is forgotten once nothing of it is alive.
    """

    def __init__(self) -> None:
        self._callers: dict[tuple[str, int], _Caller] = {}

    def __len__(self) -> int:
        return sum(len(caller.waiting) for caller in self._callers.values())

    def __iter__(self) -> Iterator[Sequence]:
        """Yield sequences in the order of service as it stands now.

        Each one is taken to be served its known tokens, so callers alternate.
        """
        ranked = []
        for caller in self._callers.values():
            served = caller.served_tokens
            for place, sequence in enumerate(sorted(caller.waiting, key=_class_of)):
                ranked.append(((*_class_of(sequence), served, place), sequence))
                served += sequence.num_tokens
        ranked.sort(key=lambda pair: pair[0])
        return (sequence for _, sequence in ranked)

    def enter(self, sequence: Sequence) -> None:
        """Take a new sequence, behind the others of its caller."""
        caller = self._join(sequence)
        caller.num_live += 1
        caller.waiting.append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Take a sequence that was running, before the others of its caller."""
        self._join(sequence).waiting.insert(0, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence go that now runs or has ended."""
        self._callers[_key_of(sequence)].waiting.remove(sequence)

    def set_detached(self, sequence: Sequence, *, is_detached: bool) -> None:
        """Take that the client of a live sequence is gone, or back again."""
        if not is_detached:
            self._join(sequence)
        sequence.is_detached = is_detached

    def charge(self, sequence: Sequence, *, num_tokens: int) -> None:
        """Count what a running sequence was served."""
        self._callers[_key_of(sequence)].served_tokens += num_tokens

    def leave(self, sequence: Sequence) -> None:
        """Count a sequence out that has ended."""
        caller = self._callers[_key_of(sequence)]
        caller.num_live -= 1
        if not caller.num_live:
            del self._callers[_key_of(sequence)]

    def check_integrity(self, running: list[Sequence]) -> None:
        """Assert that every live sequence is counted for its caller."""
        num_live = Counter(_key_of(sequence) for sequence in (*self, *running))
        assert num_live == {key: caller.num_live for key, caller in self._callers.items()}

    def _join(self, sequence: Sequence) -> _Caller:
        """Return a sequence's caller, lifted to those in line if it was not one of them.

        Where nobody is in line, it starts level with whoever was served most: nobody that runs now
        has to wait later until it has caught up.
        """
        caller = self._callers.setdefault(_key_of(sequence), _Caller())
        if not caller.is_in_line:
            others = [
                other
                for (_, priority), other in self._callers.items()
                if priority == sequence.priority
            ]
            in_line = [other.served_tokens for other in others if other.is_in_line]
            level = min(in_line) if in_line else max(other.served_tokens for other in others)
            caller.served_tokens = max(caller.served_tokens, level)
        return caller


def _key_of(sequence: Sequence) -> tuple[str, int]:
    return sequence.owner, sequence.priority


def _class_of(sequence: Sequence) -> tuple[bool, int]:
    """Return what goes before any share: smaller ones are served first."""
    return sequence.is_detached, -sequence.priority
