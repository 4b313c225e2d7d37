"""Provides the clock, threads and queues that the engine uses.

The engine gets them from a `Host`. A simulation passes a host of its own, whose clock jumps and
whose threads run in an order drawn from a seed (`tests/simulation`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Thread(Protocol):
    """The part of `threading.Thread` that the engine uses."""

    @property
    def ident(self) -> int | None:
        """The thread identifier; None before `start`."""

    def start(self) -> None:
        """Start the thread."""

    def join(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for the thread to end; None waits without a limit."""

    def is_alive(self) -> bool:
        """Return whether the thread has started and not ended."""


class Inbox(Protocol[T]):
    """The part of `queue.SimpleQueue` that the engine uses."""

    def empty(self) -> bool:
        """Return whether the queue is empty at this moment."""

    def put(self, item: T) -> None:
        """Append an item; never blocks."""

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Remove and return the first item, after waiting for one.

        Raises:
            queue.Empty: there is none, and `block` is false or `timeout` seconds have passed.
        """

    def get_nowait(self) -> T:
        """Remove and return the first item.

        Raises:
            queue.Empty: there is none.
        """


class Host:
    """The clock, threads and queues of the operating system."""

    def now(self) -> float:
        """Return the time in monotonic seconds."""
        return time.monotonic()

    def make_thread(self, run: Callable[[], None], *, name: str) -> Thread:
        """Return a new daemon thread that calls `run` once started."""
        return threading.Thread(target=run, name=name, daemon=True)

    def make_inbox(self) -> Inbox[Any]:
        """Return a new unbounded, thread-safe queue."""
        return queue.SimpleQueue()


OPERATING_SYSTEM = Host()
