"""A deterministic scheduler of threads with simulated time, both driven by a seed.

Each simulated thread is a real one, but only one of them runs at a time. The world switches threads
where one waits and, as an operating system does, between any two lines of the watched source files.
Every run is therefore possible with real threads, and its seed replays it. Simulated time advances
while all threads wait, and sometimes while a thread is preempted.
"""

from __future__ import annotations

import queue
import random
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

from streaming.host import Host, Inbox, Thread

T = TypeVar("T")

_MEAN_LINES_PER_TURN = (5, 20, 60, 300)
"""Mean length of a turn in watched lines, one of these per run; each turn draws its own length."""
_PAUSE_SHARES = (0.01, 0.2)
"""Share of turns that end with a pause, one of these per run: the thread is preempted."""
_PAUSES_S = (0.001, 0.01, 0.1, 1.0)
"""Mean length of a pause, one of these per pause."""
_MAX_S = 3600.0
"""Longest simulated time of a run; a longer one counts as endless."""
_LEAVE_S = 60.0
"""Simulated time for threads to end after the run."""
_END_S = 10.0
"""Real time for a thread to end after the run has failed."""


class Deadlock(AssertionError):
    """All threads wait for each other, or the run takes longer than `_MAX_S`."""


class _Killed(BaseException):
    """Raised in the threads of a failed run to end them."""


class SimulatedThread:
    """A thread of a world, with the interface of a host's thread."""

    def __init__(self, world: World, run: Callable[[], object], name: str) -> None:
        self.name = name
        self.is_done = False
        self.until: Callable[[], bool] | None = None
        self.wakes_at: float | None = None
        self.turn = threading.Lock()
        self.turn.acquire()
        """Held, except for the moment in which the thread gets its turn."""
        self._world = world
        self._run = run
        self._thread = threading.Thread(target=self._main, name=f"simulated-{name}", daemon=True)
        self._is_started = False

    def start(self) -> None:
        self._is_started = True
        self._world.enter(self)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        self._world.wait(lambda: self.is_done, timeout_s=timeout)

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    def is_alive(self) -> bool:
        return self._is_started and not self.is_done

    def join_really(self) -> None:
        """Wait in real time until the real thread has ended."""
        self._thread.join(_END_S)
        assert not self._thread.is_alive(), f"{self.name} does not end"

    def _main(self) -> None:
        self.turn.acquire()
        try:
            self._world.check_alive()
            with self._world.watching():
                self._run()
        except _Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - the run fails with it
            self._world.fail(error)
        finally:
            self.is_done = True
            self._world.leave(self)


class SimulatedInbox(Generic[T]):
    """A queue between threads of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._items: deque[T] = deque()

    def empty(self) -> bool:
        return not self._items

    def put(self, item: T) -> None:
        self._items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        if block:
            self._world.wait(lambda: bool(self._items), timeout_s=timeout)
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> T:
        return self.get(block=False)


class World(Host):
    """Owns the threads, the time and the random numbers of one run.

    The thread that creates it is its first thread.

    Args:
        seed: seed of all random choices.
        watched: source files between whose lines threads may switch.
    """

    def __init__(self, seed: int, *, watched: frozenset[str]) -> None:
        missing = [path for path in watched if not Path(path).is_file()]
        assert not missing, f"no such files to watch: {missing}"
        self.rng = random.Random(seed)
        self.time = 1000.0
        self._ends_at = self.time + _MAX_S
        self._watched = watched
        self._first = SimulatedThread(self, lambda: None, "loop")
        self._current = self._first
        self._threads = [self._first]
        self._failure: BaseException | None = None
        self._mean_lines_per_turn = self.rng.choice(_MEAN_LINES_PER_TURN)
        self._pause_share = self.rng.choice(_PAUSE_SHARES)
        self._num_lines_left = 1
        self.digest = 0
        """Checksum of all thread switches; equal for two runs with the same course."""
        self.num_turns = 0

    # Interface of a host.

    def now(self) -> float:
        return self.time

    def make_thread(self, run: Callable[[], None], *, name: str) -> Thread:
        return SimulatedThread(self, run, name)

    def make_inbox(self) -> Inbox[Any]:
        return SimulatedInbox(self)

    # Called by threads.

    def wait(self, until: Callable[[], bool], *, timeout_s: float | None = None) -> bool:
        """Let other threads run until a condition holds or a timeout; return whether it holds."""
        self.check_alive()
        me = self._current
        me.until = until
        me.wakes_at = None if timeout_s is None else self.time + timeout_s
        self._pass_turn()
        me.until = me.wakes_at = None
        return until()

    def sleep(self, seconds: float) -> None:
        """Let other threads run for `seconds` of simulated time."""
        self.wait(lambda: False, timeout_s=seconds)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Allow the calling thread to be preempted between watched lines, during the block."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)

    # Threads and failures.

    def enter(self, thread: SimulatedThread) -> None:
        """Add a thread that starts."""
        self._threads.append(thread)

    def leave(self, thread: SimulatedThread) -> None:
        """Remove a thread that has ended, and give its turn to another."""
        self._threads.remove(thread)
        if self._failure is None or self._current is thread:
            self._hand_over(self._next())

    def fail(self, error: BaseException) -> None:
        """Fail the run with an error, which the first thread raises."""
        if self._failure is None:
            self._failure = error

    def check_alive(self) -> None:
        """Raise if the run has failed."""
        if self._failure is None:
            return
        if self._current is self._first:
            raise self._failure
        raise _Killed

    def close(self) -> None:
        """End the run, and fail it if threads are left."""
        if self._failure is None:
            self.wait(lambda: self._threads == [self._first], timeout_s=_LEAVE_S)
        others = [thread for thread in self._threads if thread is not self._first]
        if others and self._failure is None:
            names = ", ".join(thread.name for thread in others)
            self.fail(AssertionError(f"threads are left: {names}"))
        for thread in others:
            self._hand_over(thread)
            thread.join_really()
        if self._failure is not None:
            raise self._failure

    # Internals.

    def _trace(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._trace_line if frame.f_code.co_filename in self._watched else None

    def _trace_line(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self._num_lines_left -= 1
            if self._num_lines_left <= 0 and self._failure is None:
                self.digest = zlib.crc32(b"%d" % frame.f_lineno, self.digest)
                if self.rng.random() < self._pause_share:
                    self.sleep(self.rng.expovariate(1 / self.rng.choice(_PAUSES_S)))
                else:
                    self._pass_turn()
        return self._trace_line

    def _pass_turn(self) -> None:
        me = self._current
        try:
            chosen = self._next()
        except Deadlock as error:
            self.fail(error)
            chosen = self._first
        if chosen is not me:
            self._hand_over(chosen)
            me.turn.acquire()
        self.check_alive()

    def _hand_over(self, thread: SimulatedThread) -> None:
        self._current = thread
        if thread.turn.locked():  # always, except at the end of a failed run
            thread.turn.release()

    def _next(self) -> SimulatedThread:
        if self._failure is not None:
            return self._first
        while True:
            ready = [thread for thread in self._threads if self._is_ready(thread)]
            if ready:
                chosen = self.rng.choice(ready)
                lines = self.rng.expovariate(1 / self._mean_lines_per_turn)
                self._num_lines_left = 1 + int(lines)
                self.num_turns += 1
                self.digest = zlib.crc32(f"{chosen.name} {self.time}".encode(), self.digest)
                return chosen
            times = [thread.wakes_at for thread in self._threads if thread.wakes_at is not None]
            if not times or self.time > self._ends_at:
                waiting = ", ".join(thread.name for thread in self._threads)
                raise Deadlock(f"all threads wait forever: {waiting}")
            self.time = max(self.time, min(times))

    def _is_ready(self, thread: SimulatedThread) -> bool:
        if thread.until is None or thread.until():
            return True
        return thread.wakes_at is not None and thread.wakes_at <= self.time
