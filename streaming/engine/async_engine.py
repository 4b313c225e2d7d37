"""Connects the event loop and the engine thread; no other module crosses between them.

Towards the engine thread: commands in its inbox. Towards the event loop: one `call_soon_threadsafe`
per step, with the logs that have new records. The engine thread never waits for a client, and the
event loop never waits for the model. While the engine thread is stuck, a watchdog ends overdue logs
from the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from streaming.admission.controller import AdmissionController
from streaming.backend import Backend, ModelInfo, Tokenizer
from streaming.config import EngineConfig
from streaming.engine.engine import Engine
from streaming.engine.engine_thread import EngineThread
from streaming.engine.watchdog import STUCK_AFTER_S, Watchdog
from streaming.errors import EngineFailure, GenerationNotFound, Overloaded, ShuttingDown
from streaming.host import OPERATING_SYSTEM, Host
from streaming.log.generation import Failed, Generation
from streaming.log.reader import Reader
from streaming.log.store import LogStore
from streaming.log.subscribers import Subscribers
from streaming.request import ANYONE, GenerationRequest
from streaming.sequence import Sequence

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
"""`retry_after_s` during shutdown. When another server is up is unknown here."""
_WATCH_PERIOD_S = 0.25
"""Period of the watchdog."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Numbers of open generations at this moment.

    Attributes:
        num_running: generations that have started, preempted ones included.
        num_waiting: generations that have not started.
    """

    num_running: int
    num_waiting: int


class AsyncEngine:
    """The asyncio API of the engine. Create it on any thread; `start` it on the loop that uses it.

    Args:
        backend: owned by this object, and closed by `aclose`.
        config: limits.
        thread: drives the engine. Pass the thread that has loaded the model; None makes a new one.
        host: provides the clock, threads and queues.
    """

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig | None = None,
        *,
        thread: EngineThread | None = None,
        host: Host = OPERATING_SYSTEM,
    ) -> None:
        self._now = host.now
        self._backend = backend
        self._config = config or EngineConfig()
        self._engine = Engine(backend.runner, clock=host.now)
        self._store = LogStore[Generation](
            retention_s=self._config.retention_s,
            retention_bytes=self._config.retention_bytes,
            clock=host.now,
        )
        self._thread = EngineThread(host=host) if thread is None else thread
        self._watchdog = Watchdog(
            self._thread, step_timeout_s=self._config.step_timeout_s, clock=host.now
        )
        self._watch_timer: asyncio.TimerHandle | None = None
        self._subscribers = Subscribers(
            cancel=self.cancel,
            set_detached=self._set_detached,
            call_later=lambda delay_s, call: asyncio.get_running_loop().call_later(delay_s, call),
        )
        self._admission = AdmissionController(
            backend,
            self._config,
            open_logs=lambda: self._store.open_logs,
            evict_waiting=self._evict_waiting,
            forecast=lambda: self._engine.forecast,
            check_alive=self._check_alive,
            host=host,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self.is_shutting_down = False
        """Whether `drain` or `aclose` has been called."""
        self.has_failed = False
        """Whether the engine thread is dead or stuck; restart the process."""
        self.has_stuck_threads = False
        """Whether `aclose` has left threads behind that did not end."""

    @classmethod
    def load(cls, load: Callable[[], Backend], config: EngineConfig | None = None) -> Self:
        """Load a backend on the thread that will drive the engine, and block until it is loaded.

        Raises:
            ModelLoadError: as `load` does, like any other exception. No thread is left behind.
        """
        thread = EngineThread()
        thread.start()
        try:
            return cls(thread.call(load), config, thread=thread)
        except BaseException:
            thread.stop(EngineFailure())
            raise

    @property
    def info(self) -> ModelInfo:
        """The served model."""
        return self._backend.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the served model."""
        return self._backend.tokenizer

    @property
    def stats(self) -> EngineStats:
        """Numbers of running and waiting generations."""
        open_logs = [log for log in self._store.open_logs if not log.is_ended]
        num_running = sum(log.started is not None for log in open_logs)
        return EngineStats(num_running, len(open_logs) - num_running)

    @property
    def is_ready(self) -> bool:
        """Whether the engine accepts requests: started, alive and not shutting down."""
        is_open = self._loop is not None and not self.is_shutting_down
        return is_open and not self.has_failed and self._thread.is_alive

    async def start(self) -> None:
        """Start the engine on the running event loop."""
        self._loop = asyncio.get_running_loop()
        if not self._thread.is_alive:
            self._thread.start()
        self._thread.drive(
            self._engine,
            on_step=lambda touched: self._on_loop(self._deliver, touched),
            on_death=lambda: self._on_loop(self._on_engine_death),
        )
        self._watch()

    # Requests.

    async def submit(self, request: GenerationRequest) -> Generation:
        """Admit a request and return its log, which the engine writes from now on.

        A call that is cancelled queues nothing. Read the log with `subscribe`.

        Raises:
            RequestError: the request cannot be served; nothing was queued.
            CapacityError: there is no room for it now.
            EngineFailure: the engine has failed.
        """
        return (await self.submit_all([request]))[0]

    async def submit_all(self, requests: SequenceOf[GenerationRequest]) -> list[Generation]:
        """Admit all requests or none, and return their logs in the same order.

        A prompt that several requests share is tokenized once, and a shared grammar compiled once.

        Raises:
            RequestError: one of them cannot be served; none was queued.
            CapacityError: there is no room for all of them now.
            EngineFailure: the engine has failed.
        """
        if not requests:
            return []
        return [self._enqueue(sequence) for sequence in await self._admission.admit(requests)]

    async def tokenize(self, request: GenerationRequest) -> list[int]:
        """Return the token ids of a request's prompt, which may exceed the context length.

        Raises:
            RequestError: the request cannot be served.
            CapacityError: the tokenizer queue is full.
            EngineFailure: the engine has failed.
        """
        return await self._admission.tokenize(request)

    async def detokenize(
        self, token_ids: SequenceOf[int], *, param: str, caller: str = ANYONE
    ) -> str:
        """Return the text of tokens, without special tokens.

        Args:
            token_ids: the tokens.
            param: name of the request field that holds them, for errors.
            caller: the caller.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
            CapacityError: the tokenizer queue is full.
            EngineFailure: the engine has failed.
        """
        return await self._admission.detokenize(token_ids, param=param, caller=caller)

    def find(self, generation_id: str, *, caller: str) -> Generation:
        """Return a log that can still be read.

        Raises:
            GenerationNotFound: it never existed, has expired, or belongs to another caller.
        """
        generation = self._store.find(generation_id, caller=caller)
        if generation is None:
            raise GenerationNotFound(generation_id=generation_id)
        return generation

    def cancel(self, generation: Generation) -> None:
        """Cancel a generation at the engine's next step; a no-op if it has ended."""
        if generation.is_ended:
            return  # no command: a dead engine thread never reads its inbox again
        generation_id = generation.generation_id
        self._watchdog.expect_end(generation, due_at=self._now())
        self._thread.put(lambda: self._engine.cancel(generation_id))

    @contextmanager
    def subscribe(
        self,
        generation: Generation,
        *,
        after: int = -1,
        include_empty_deltas: bool = False,
        on_wake: Callable[[], None] | None = None,
        grace_s: float = 0.0,
    ) -> Iterator[Reader]:
        """Subscribe to a log: read it, and keep its generation alive meanwhile.

        When the last subscriber leaves an open log, the generation is cancelled after `grace_s`
        seconds, unless a client subscribes again by then.

        Args:
            generation: the log.
            after: cursor to read from; -1 reads from the start.
            include_empty_deltas: whether to yield deltas without text.
            on_wake: called when the log has new records.
            grace_s: seconds for which the generation goes on without a subscriber.

        Raises:
            CursorLost: `after` is not in the log.
        """
        with (
            Reader(
                generation, after=after, include_empty_deltas=include_empty_deltas, on_wake=on_wake
            ) as reader,
            self._store.pin(generation.generation_id),
        ):
            self._subscribers.add(generation)
            try:
                yield reader
            finally:
                self._subscribers.remove(generation, grace_s=grace_s)

    # Shutdown.

    async def drain(self, *, deadline_s: float) -> None:
        """Refuse new requests, end waiting ones, and wait `deadline_s` seconds for running ones."""
        self.is_shutting_down = True
        error = self._shutting_down()
        self._admission.fail_all(error)
        for generation in self._store.open_logs:
            if generation.started is None:
                self._watchdog.expect_end(generation, due_at=self._now(), error=error)
        self._thread.put(lambda: self._engine.fail_all(error, waiting_only=True))
        try:
            async with asyncio.timeout(deadline_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d generations did not end within the drain time", self._store.num_open)
            await self._end_all()

    async def aclose(self) -> None:
        """End all generations and close the backend. Idempotent.

        Threads that do not end within `close_timeout_s` are left behind and set
        `has_stuck_threads`. If the engine thread is one of them, the backend stays open.
        """
        if self._is_closed:
            return
        self._is_closed = self.is_shutting_down = True
        self._subscribers.end_all_graces()
        if self._thread.is_alive:
            await self._end_all()
            self._thread.stop(self._shutting_down())
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        has_ended, has_pool_ended = await asyncio.gather(
            asyncio.to_thread(self._thread.join, self._config.close_timeout_s),
            asyncio.to_thread(self._admission.shutdown, self._config.close_timeout_s),
        )
        self.has_stuck_threads = not (has_ended and has_pool_ended)
        if has_ended:
            self._backend.runner.close()
        if self.has_stuck_threads:
            logger.error("threads of the engine are stuck and were left behind")

    # On the event loop.

    def _check_alive(self) -> None:
        if self.has_failed:
            raise EngineFailure
        if self.is_shutting_down:
            raise self._shutting_down()
        assert self._loop is not None, "call `start` first"

    def _enqueue(self, sequence: Sequence) -> Generation:
        generation = sequence.generation
        self._store.add(generation.generation_id, generation)
        self._watchdog.expect_end(
            generation, due_at=sequence.deadline_at, error=sequence.deadline_error
        )
        self._idle.clear()
        self._thread.put(lambda: self._engine.add(sequence))
        return generation

    def _shutting_down(self) -> ShuttingDown:
        return ShuttingDown(retry_after_s=_RETRY_AFTER_S)

    def _evict_waiting(self, generation: Generation, error: Overloaded) -> None:
        # Without a watchdog deadline: a generation that has started meanwhile goes on.
        generation_id = generation.generation_id
        self._thread.put(lambda: self._engine.evict_waiting(generation_id, error))

    def _set_detached(self, generation_id: str, is_detached: bool) -> None:
        self._thread.put(lambda: self._engine.set_detached(generation_id, is_detached=is_detached))

    def _deliver(self, touched: list[Generation]) -> None:
        for generation in touched:
            if generation.is_ended:
                self._store.finish(generation.generation_id)
                self._watchdog.remove(generation)
                self._subscribers.end_grace(generation.generation_id)
            generation.wake()
        if not self._store.num_open:
            self._idle.set()

    def _on_engine_death(self) -> None:
        """End all logs. The engine thread has died, so this thread may use the engine."""
        self.has_failed = True
        self._deliver(self._thread.fail_all_logs())

    def _watch(self) -> None:
        """Check the engine thread and the tokenizer threads, and schedule the next check."""
        assert self._loop is not None
        self._watch_timer = self._loop.call_later(_WATCH_PERIOD_S, self._watch)
        self._deliver(self._watchdog.end_overdue())
        self._admission.replace_stuck_threads()
        if self.has_failed:
            return
        reason = self._admission.failure_reason() or self._watchdog.failure_reason()
        if reason is not None:
            logger.critical("the engine has failed and accepts no more work: %s", reason)
            self.has_failed = True
            self._end_open_logs(Failed(EngineFailure(), self._now()))

    async def _end_all(self) -> None:
        """End all logs: on the engine thread, or on this one if that does not respond."""
        error = self._shutting_down()
        self._admission.fail_all(error)
        self._thread.put(lambda: self._engine.fail_all(error))
        try:
            async with asyncio.timeout(STUCK_AFTER_S):
                await self._idle.wait()
        except TimeoutError:
            self._end_open_logs(Failed(error, self._now()))

    def _end_open_logs(self, ending: Failed) -> None:
        open_logs = list(self._store.open_logs)
        for generation in open_logs:
            generation.end(ending)
        self._deliver(open_logs)

    # On the engine thread.

    def _on_loop(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            logger.debug("dropped a callback: the event loop is closed")
