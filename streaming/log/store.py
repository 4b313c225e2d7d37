"""Keeps the logs that can be read: all open ones, and ended ones for a limited time.

The async engine keeps its generations in one, the Responses service its responses in another.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar


class OwnedLog(Protocol):
    """What the store reads from a log."""

    @property
    def caller(self) -> str:
        """The caller that may find it."""

    @property
    def is_ended(self) -> bool:
        """Whether it is complete."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, in bytes."""


LogT = TypeVar("LogT", bound=OwnedLog)


@dataclass(frozen=True, slots=True)
class _Ended(Generic[LogT]):
    log: LogT
    num_bytes: int
    last_used_at: float


class LogStore(Generic[LogT]):
    """Keeps open logs, and ended ones up to an age, a number and a size; evicts the oldest first.

    The age of an ended log is the time since it was last pinned. A client that is still reading a
    log may lose its connection at any moment, and then needs the full retention time to come back.

    Args:
        retention_s: seconds for which an ended log stays readable after its last pin.
        retention_bytes: most memory that the ended logs take together.
        max_ended: most ended logs; None sets no limit on their number.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        retention_s: float,
        retention_bytes: int,
        max_ended: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retention_s = retention_s
        self._retention_bytes = retention_bytes
        self._max_ended = max_ended
        self._clock = clock
        self._open: dict[str, LogT] = {}
        self._ended: OrderedDict[str, _Ended[LogT]] = OrderedDict()  # by `last_used_at`
        self._num_pins: Counter[str] = Counter()
        self.num_ended_bytes = 0

    @property
    def num_open(self) -> int:
        """Number of open logs."""
        return len(self._open)

    @property
    def num_ended(self) -> int:
        """Number of ended logs that are kept."""
        return len(self._ended)

    @property
    def open_logs(self) -> tuple[LogT, ...]:
        """All open logs, in the order in which they were added."""
        return tuple(self._open.values())

    def add(self, log_id: str, log: LogT) -> None:
        """Add an open log under a new id."""
        assert log_id not in self._open
        self._open[log_id] = log

    def finish(self, log_id: str) -> None:
        """Move a log that has ended from the open to the ended ones, then evict."""
        log = self._open.get(log_id)
        if log is not None:
            assert log.is_ended
            del self._open[log_id]
            ended = _Ended(log, log.num_bytes, self._clock())
            self._ended[log_id] = ended
            self.num_ended_bytes += ended.num_bytes
        self.evict()

    def find(self, log_id: str, *, caller: str) -> LogT | None:
        """Return the log, or None if it is gone or belongs to another caller."""
        self.evict()
        log = self._open.get(log_id)
        if log is None and (ended := self._ended.get(log_id)) is not None:
            log = ended.log
        return log if log is not None and log.caller == caller else None

    @contextmanager
    def pin(self, log_id: str) -> Iterator[None]:
        """Keep a log from expiring while the block runs; its age restarts at 0 afterwards."""
        self._num_pins[log_id] += 1
        try:
            yield
        finally:
            self._num_pins[log_id] -= 1
            if not self._num_pins[log_id]:
                del self._num_pins[log_id]
            self._renew(log_id)

    def remove(self, log_id: str) -> bool:
        """Remove a log and return whether it was among the open ones.

        A log that has ended stays among them until `finish` is called.
        """
        self._drop(log_id)
        return self._open.pop(log_id, None) is not None

    def evict(self) -> None:
        """Drop ended logs, oldest first, until all limits hold.

        A pin protects a log from expiring, but not from the limits on number and size.
        """
        oldest_kept_at = self._clock() - self._retention_s
        while self._ended:
            log_id, oldest = next(iter(self._ended.items()))
            if self._is_over_limit:
                self._drop(log_id)
            elif oldest.last_used_at >= oldest_kept_at:
                break
            elif log_id in self._num_pins:
                self._renew(log_id)
            else:
                self._drop(log_id)

    @property
    def _is_over_limit(self) -> bool:
        has_too_many = self._max_ended is not None and self.num_ended > self._max_ended
        return has_too_many or self.num_ended_bytes > self._retention_bytes

    def _renew(self, log_id: str) -> None:
        if (ended := self._ended.pop(log_id, None)) is not None:
            self._ended[log_id] = replace(ended, last_used_at=self._clock())

    def _drop(self, log_id: str) -> None:
        ended = self._ended.pop(log_id, None)
        if ended is not None:
            self.num_ended_bytes -= ended.num_bytes
