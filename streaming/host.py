"""Time, threads and queues as the operating system gives them.

The engine gets them from a `Host`, so that a simulation can give it others: a clock that jumps and
threads that run in an order drawn from a seed (`tests/simulation`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Thread(Protocol):
    """What the engine needs of a `threading.Thread`."""

    @property
    def ident(self) -> int | None:
        """None until it is started."""

    def start(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool: ...


class Inbox(Protocol[T]):
    """What the engine needs of a `queue.SimpleQueue`."""

    def empty(self) -> bool: ...

    def put(self, item: T) -> None: ...

    def get(self, block: bool = True, timeout: float | None = None) -> T: ...

    def get_nowait(self) -> T: ...


class Host:
    """The operating system."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def make_thread(self, run: Callable[[], None], *, name: str) -> Thread:
        """Return a daemon thread that is not started yet."""
        return threading.Thread(target=run, name=name, daemon=True)

    def make_inbox(self) -> Inbox[Any]:
        """Return an unbounded queue between threads."""
        return queue.SimpleQueue()


OPERATING_SYSTEM = Host()
