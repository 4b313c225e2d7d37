"""Which logs can still be read: all that are open, and the ended ones for a while."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar


class OwnedLog(Protocol):
    """What the store has to know of a log."""

    @property
    def caller(self) -> str: ...

    @property
    def is_ended(self) -> bool: ...

    @property
    def num_bytes(self) -> int: ...


LogT = TypeVar("LogT", bound=OwnedLog)


@dataclass(frozen=True, slots=True)
class _Ended(Generic[LogT]):
    log: LogT
    num_bytes: int
    used_at: float


class LogStore(Generic[LogT]):
    """Open logs, and ended ones up to an age, a number and a size; the oldest ended goes first.

    The age of an ended log is the time since it was last followed: a client that is still taking a
    log may lose its line at any moment, and comes back to it then.

    Args:
        retention_s: how long an ended log stays readable that nobody follows.
        retention_bytes: how much memory the ended logs may take together.
        max_ended: how many of them stay; None leaves that to their size.
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
        self._ended: OrderedDict[str, _Ended[LogT]] = OrderedDict()  # by `used_at`
        self._num_pins: Counter[str] = Counter()
        self.num_ended_bytes = 0

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_ended(self) -> int:
        return len(self._ended)

    @property
    def open_logs(self) -> tuple[LogT, ...]:
        return tuple(self._open.values())

    def add(self, log_id: str, log: LogT) -> None:
        assert log_id not in self._open
        self._open[log_id] = log

    def finish(self, log_id: str) -> None:
        """Move a log that has ended to the ended ones, and drop what is too old or too much."""
        log = self._open.get(log_id)
        if log is not None:
            assert log.is_ended
            del self._open[log_id]
            ended = _Ended(log, log.num_bytes, self._clock())
            self._ended[log_id] = ended
            self.num_ended_bytes += ended.num_bytes
        self.evict()

    def find(self, log_id: str, *, caller: str) -> LogT | None:
        """Return the log, if it can still be read and is the caller's."""
        self.evict()
        log = self._open.get(log_id)
        if log is None and (ended := self._ended.get(log_id)) is not None:
            log = ended.log
        return log if log is not None and log.caller == caller else None

    @contextmanager
    def pin(self, log_id: str) -> Iterator[None]:
        """Keep a log from growing old while the block runs; its age begins anew at the end."""
        self._num_pins[log_id] += 1
        try:
            yield
        finally:
            self._num_pins[log_id] -= 1
            if not self._num_pins[log_id]:
                del self._num_pins[log_id]
            self._renew(log_id)

    def remove(self, log_id: str) -> bool:
        """Forget a log, and return whether it was open: ended, but not yet settled, is."""
        self._drop(log_id)
        return self._open.pop(log_id, None) is not None

    def evict(self) -> None:
        """Drop ended logs over a limit or past their time."""
        oldest_kept_at = self._clock() - self._retention_s
        while self._ended:
            log_id, oldest = next(iter(self._ended.items()))
            if self._is_over_a_limit:
                self._drop(log_id)
            elif oldest.used_at >= oldest_kept_at:
                break
            elif log_id in self._num_pins:
                self._renew(log_id)
            else:
                self._drop(log_id)

    @property
    def _is_over_a_limit(self) -> bool:
        is_too_many = self._max_ended is not None and self.num_ended > self._max_ended
        return is_too_many or self.num_ended_bytes > self._retention_bytes

    def _renew(self, log_id: str) -> None:
        if (ended := self._ended.pop(log_id, None)) is not None:
            self._ended[log_id] = replace(ended, used_at=self._clock())

    def _drop(self, log_id: str) -> None:
        ended = self._ended.pop(log_id, None)
        if ended is not None:
            self.num_ended_bytes -= ended.num_bytes
