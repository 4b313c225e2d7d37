"""The bridge between the event loop and the engine's thread; no other module crosses it.

To the engine's thread: commands in its inbox. From there: one `call_soon_threadsafe` a step, with
the logs that have something new. The engine's thread never waits for a client and the event loop
never waits for the model: where that thread is stuck, a watchdog ends logs from the loop's side.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

from streaming.admission.admission import Admission, PreparedRequest
from streaming.admission.capacity import Capacity
from streaming.admission.tokenizer_queue import TokenizerQueue
from streaming.admission.worker_pool import WorkerPool
from streaming.backend import Backend, ModelInfo, Tokenizer
from streaming.config import EngineConfig
from streaming.engine.engine import Engine
from streaming.engine.engine_thread import EngineThread
from streaming.engine.watchdog import PATIENCE_S, Watchdog
from streaming.errors import (
    DeadlineExceeded,
    EngineFailure,
    GenerationNotFound,
    Overloaded,
    ShuttingDown,
)
from streaming.host import OPERATING_SYSTEM, Host
from streaming.log.generation import Failed, Generation
from streaming.log.reader import Reader
from streaming.log.store import LogStore
from streaming.log.subscribers import Subscribers
from streaming.request import ANYONE, GenerationRequest

T = TypeVar("T")
logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
"""Said at shutdown: when another server answers, nobody here knows."""
_WATCH_PERIOD_S = 0.25
"""Time between two looks at the engine's thread."""
_MAX_STUCK_TOKENIZERS = 4
"""Tokenizer threads that may hang; one more, and the engine fails: each keeps its memory."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts of this moment."""

    num_running: int
    num_waiting: int


class AsyncEngine:
    """The engine's face to the event loop. Create it anywhere; `start` it on the loop that uses it.

    Args:
        backend: owned from here on; `aclose` closes its runner.
        config: limits.
        thread: drives the engine; the one that has loaded the backend's model, or else a new one.
        host: gives time, threads and queues.
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
        self._admission = Admission(backend, max_priority=self._config.max_priority, clock=host.now)
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
        self._tokenizer_pool = WorkerPool(
            self._config.num_tokenizer_threads, name="tokenwire-tokenizer", host=host
        )
        self._tokenizing = TokenizerQueue(
            self._tokenizer_pool,
            num_threads=self._config.num_tokenizer_threads,
            check=self._check_alive,
        )
        self._capacity = Capacity(
            self._config,
            max_running=backend.runner.max_num_seqs,
            open_logs=lambda: self._store.open_logs,
            tokenizing=lambda: self._tokenizing.num_requests,
            tokenizing_places=lambda: self._tokenizing.places,
            displace=self._displace,
            outlook=lambda: self._engine.outlook,
            clock=host.now,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self.is_shutting_down = False
        self.has_failed = False
        """The engine's thread is dead or hangs; only a new process helps."""
        self.has_stuck_threads = False
        """Closed, and threads are left that do not end."""

    @classmethod
    def load(cls, load: Callable[[], Backend], config: EngineConfig | None = None) -> Self:
        """Load a backend on the thread that will drive the engine, and wait for it.

        Raises:
            ModelLoadError: as `load` does, or whatever else that raises; no thread is left then.
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
        return self._backend.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._backend.tokenizer

    @property
    def stats(self) -> EngineStats:
        open_logs = [log for log in self._store.open_logs if not log.is_ended]
        num_running = sum(log.started is not None for log in open_logs)
        return EngineStats(num_running, len(open_logs) - num_running)

    @property
    def is_ready(self) -> bool:
        is_open = self._loop is not None and not self.is_shutting_down
        return is_open and not self.has_failed and self._thread.is_alive

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not self._thread.is_alive:
            self._thread.start()
        self._thread.drive(
            self._engine,
            on_step=lambda touched: self._on_loop(self._deliver, touched),
            on_death=lambda: self._on_loop(self._bury),
        )
        self._watch()

    # Requests.

    async def submit(self, request: GenerationRequest) -> Generation:
        """Admit a request and return its log; the engine writes it from now on.

        Nothing generates for a caller that is gone: who wants the log to survive must `follow` it.

        Raises:
            RequestError: the request cannot be served; nothing was queued.
            CapacityError: it could be, later.
            EngineFailure: the engine is dead.
        """
        [generation] = await self.submit_all([request])
        return generation

    async def submit_all(self, requests: SequenceOf[GenerationRequest]) -> list[Generation]:
        """Admit all requests or none, and return their logs in the same order.

        Requests that share a prompt have it tokenised once, and a grammar compiled once.

        Raises:
            RequestError: one of them cannot be served; none was queued.
            CapacityError: there is no room for all of them now.
            EngineFailure: the engine is dead.
        """
        if not requests:
            return []
        caller = requests[0].caller
        assert all(request.caller == caller for request in requests)
        self._check_alive()
        self._capacity.check(caller, num_requests=len(requests))  # cheaper than a look at them
        for request in requests:
            self._admission.check(request)
        prepared = await self._work(
            lambda: self._admission.prepare(requests, checkpoint=self._check_alive),
            caller=caller,
            num_requests=len(requests),
            timeout_s=min(request.timeout_s or math.inf for request in requests),
        )
        self._check_alive()
        self._capacity.admit(
            caller, num_requests=len(requests), prompts=[each.prompt_ids for each in prepared]
        )
        return [self._enqueue(each) for each in prepared]

    async def tokenize(self, request: GenerationRequest) -> list[int]:
        """Return the token ids of a request's prompt, which may be longer than the context.

        Raises:
            RequestError: the request could not be served.
            CapacityError: as many prompts as may wait are being tokenised.
            EngineFailure: the engine is dead.
        """
        self._admission.check(request)
        encoded = await self._work(
            lambda: self._admission.encode_unbounded(request.prompt), caller=request.caller
        )
        return encoded.token_ids

    async def detokenize(
        self, token_ids: SequenceOf[int], *, param: str, caller: str = ANYONE
    ) -> str:
        """Return the text of tokens, special ones left out.

        Args:
            param: the field that the tokens came in.
            caller: the caller.

        Raises:
            InvalidRequest: the model does not have one of them.
            CapacityError: as many prompts as may wait are being tokenised.
            EngineFailure: the engine is dead.
        """
        return await self._work(lambda: self._admission.decode(param, token_ids), caller=caller)

    def find(self, generation_id: str, *, caller: str) -> Generation:
        """Return a log that can still be read.

        Raises:
            GenerationNotFound: it never was, has expired, or is someone else's.
        """
        generation = self._store.find(generation_id, caller=caller)
        if generation is None:
            raise GenerationNotFound(generation_id=generation_id)
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a generation at the engine's next step; nothing happens if it has ended."""
        if generation.is_ended:
            return  # and a dead engine, whose logs have all ended, would never empty its inbox
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
        """Read a log as a client that the generation lives for.

        When the last follower leaves an open log, the generation is cancelled after `grace_s`
        seconds, unless someone has followed it again by then.

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
        """Refuse new work, end what waits, and give what runs `deadline_s` seconds to end."""
        self.is_shutting_down = True
        error = self._shutting_down()
        self._tokenizing.fail_waiting(error)
        self._tokenizer_pool.fail_all(error)
        for generation in self._store.open_logs:
            if generation.started is None:
                self._watchdog.expect_end(generation, due_at=self._now(), error=error)
        self._thread.put(lambda: self._engine.fail_all(error, waiting_only=True))
        try:
            async with asyncio.timeout(deadline_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d generations did not end in time", self._store.num_open)
            await self._end_all()

    async def aclose(self) -> None:
        """End everything and close the backend. Idempotent.

        Threads that do not end within `close_timeout_s` are left behind, and so is the backend if
        the engine's is one of them: `has_stuck_threads` tells.
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
            asyncio.to_thread(self._tokenizer_pool.shutdown, self._config.close_timeout_s),
        )
        self.has_stuck_threads = not (has_ended and has_pool_ended)
        if has_ended:
            self._backend.runner.close()
        if self.has_stuck_threads:
            logger.error("threads of the engine hang and are left behind")

    # On the event loop.

    async def _work(
        self,
        work: Callable[[], T],
        *,
        caller: str,
        num_requests: int = 1,
        timeout_s: float = math.inf,
    ) -> T:
        """Run `work` on a tokenizer thread, counted as so many waiting requests until it is done.

        Raises:
            CapacityError: there is no room for so many, or a caller that holds less has taken it.
            DeadlineExceeded: it takes longer than `timeout_s`, or than any request may.
            EngineFailure: it hangs.
        """
        self._check_alive()
        assert self._loop is not None, "the engine has not been started"
        self._capacity.admit(caller, num_requests=num_requests)
        timeout_s = min(timeout_s, self._config.request_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._tokenizing.run(work, caller=caller, num_requests=num_requests)
        except TimeoutError as error:
            raise DeadlineExceeded(timeout_s=timeout_s) from error

    def _check_alive(self) -> None:
        if self.has_failed:
            raise EngineFailure
        if self.is_shutting_down:
            raise self._shutting_down()

    def _enqueue(self, prepared: PreparedRequest) -> Generation:
        sequence = self._admission.to_sequence(prepared, timeout_s=self._config.request_timeout_s)
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

    def _displace(self, generation: Generation, error: Overloaded) -> None:
        # Not through the watchdog: a log that has begun meanwhile keeps its place.
        generation_id = generation.generation_id
        self._thread.put(lambda: self._engine.displace(generation_id, error))

    def _set_detached(self, generation_id: str, is_detached: bool) -> None:
        self._thread.put(lambda: self._engine.set_detached(generation_id, is_detached=is_detached))

    def _deliver(self, touched: list[Generation]) -> None:
        for generation in touched:
            if generation.is_ended:
                self._store.finish(generation.generation_id)
                self._watchdog.forget(generation)
                self._subscribers.end_grace(generation.generation_id)
            generation.wake()
        if not self._store.num_open:
            self._idle.set()

    def _bury(self) -> None:
        """End all logs: the engine's thread has died, so its engine is this thread's now."""
        self.has_failed = True
        self._deliver(self._thread.bury())

    def _watch(self) -> None:
        """Look at the engine's thread and the tokenizers', and come back for the next look."""
        assert self._loop is not None
        self._watch_timer = self._loop.call_later(_WATCH_PERIOD_S, self._watch)
        self._deliver(self._watchdog.end_overdue())
        timeout_s = self._config.step_timeout_s
        if self._tokenizer_pool.give_up_stuck(EngineFailure(), timeout_s=timeout_s):
            logger.error("a tokenizer has taken more than %g s and is given up", timeout_s)
        if self.has_failed:
            return
        reason = self._watchdog.failure()
        if self._tokenizer_pool.num_stuck > _MAX_STUCK_TOKENIZERS:
            reason = f"{self._tokenizer_pool.num_stuck} tokenizers hang"
        if reason is not None:
            logger.critical("the engine has failed and takes no more work: %s", reason)
            self.has_failed = True
            self._end_open_logs(Failed(EngineFailure(), self._now()))

    async def _end_all(self) -> None:
        """End all logs, on the engine's thread if that still listens."""
        error = self._shutting_down()
        self._tokenizing.fail_waiting(error)
        self._tokenizer_pool.fail_all(error)
        self._thread.put(lambda: self._engine.fail_all(error))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._idle.wait()
        except TimeoutError:
            self._end_open_logs(Failed(error, self._now()))

    def _end_open_logs(self, ending: Failed) -> None:
        for generation in self._store.open_logs:
            generation.end(ending)
        self._deliver(list(self._store.open_logs))

    # On the engine's thread.

    def _on_loop(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody is left to be told")
