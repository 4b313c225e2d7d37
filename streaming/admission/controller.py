"""Admits requests: checks the limits, tokenizes prompts on worker threads, and builds sequences.

Combines `InputProcessor` (does the request fit the model?), `Capacity` (is there room?),
`TokenizerQueue` (whose prompt is tokenized next?) and `WorkerPool` (the threads). Runs on the event
loop; `AsyncEngine` is the only caller.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from typing import TypeVar

from streaming.admission.capacity import Capacity
from streaming.admission.input_processor import InputProcessor
from streaming.admission.tokenizer_queue import TokenizerQueue
from streaming.admission.worker_pool import WorkerPool
from streaming.backend import Backend
from streaming.config import EngineConfig
from streaming.errors import DeadlineExceeded, EngineFailure, Overloaded, StreamingError
from streaming.host import OPERATING_SYSTEM, Host
from streaming.log.generation import Generation
from streaming.request import GenerationRequest
from streaming.scheduling.wait_estimator import Forecast
from streaming.sequence import Sequence

T = TypeVar("T")
logger = logging.getLogger(__name__)

_MAX_STUCK_THREADS = 4
"""Tokenizer threads that may be stuck. With one more the engine fails: each keeps its memory."""


class AdmissionController:
    """Turns requests into sequences, or refuses them.

    Args:
        backend: the served model.
        config: limits.
        open_logs: returns the open logs, the oldest first.
        evict_waiting: ends a generation with an error, unless it has started.
        forecast: returns when generations are expected to start and end, if known.
        check_alive: raises if the engine accepts no more work. May be called on any thread.
        host: provides the clock, threads and queues.
    """

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        *,
        open_logs: Callable[[], Iterable[Generation]],
        evict_waiting: Callable[[Generation, Overloaded], None],
        forecast: Callable[[], Forecast | None],
        check_alive: Callable[[], None],
        host: Host = OPERATING_SYSTEM,
    ) -> None:
        self._config = config
        self._check_alive = check_alive
        self._processor = InputProcessor(backend, max_priority=config.max_priority, clock=host.now)
        self._pool = WorkerPool(config.num_tokenizer_threads, name="tokenwire-tokenizer", host=host)
        self._queue = TokenizerQueue(
            self._pool, num_threads=config.num_tokenizer_threads, check=check_alive
        )
        self._capacity = Capacity(
            config,
            max_running=backend.runner.max_num_seqs,
            open_logs=open_logs,
            num_tokenizing=lambda: self._queue.num_requests,
            evictable_tokenizing=lambda: self._queue.evictables,
            evict_waiting=evict_waiting,
            forecast=forecast,
            clock=host.now,
        )

    @property
    def num_tokenizing(self) -> int:
        """Number of requests that wait for a tokenizer thread or use one."""
        return self._queue.num_requests.total()

    async def admit(self, requests: SequenceOf[GenerationRequest]) -> list[Sequence]:
        """Return a sequence for each request, all or none. The caller must enqueue them at once.

        A prompt that several requests share is tokenized once, and a shared grammar compiled once.

        Args:
            requests: at least one, all of the same caller.

        Raises:
            RequestError: one of the requests cannot be served.
            CapacityError: there is no room for all of them now.
            EngineFailure: the engine has failed.
        """
        caller = requests[0].caller
        assert all(request.caller == caller for request in requests)
        self._check_alive()
        # First the limits: a busy server refuses at the lowest cost.
        self._capacity.check(caller, num_requests=len(requests))
        for request in requests:
            self._processor.check(request)
        prepared = await self._run_on_thread(
            lambda: self._processor.prepare(requests, checkpoint=self._check_alive),
            caller=caller,
            num_requests=len(requests),
            timeout_s=min(request.timeout_s or math.inf for request in requests),
        )
        # The prompts' lengths are known only now, and others may have come in meanwhile.
        self._check_alive()
        self._capacity.admit(
            caller, num_requests=len(requests), prompts=[each.prompt_ids for each in prepared]
        )
        timeout_s = self._config.request_timeout_s
        return [self._processor.to_sequence(each, timeout_s=timeout_s) for each in prepared]

    async def tokenize(self, request: GenerationRequest) -> list[int]:
        """Return the token ids of a request's prompt, which may exceed the context length.

        Raises:
            RequestError: the request cannot be served.
            CapacityError: the tokenizer queue is full.
            EngineFailure: the engine has failed.
        """
        self._processor.check(request)
        encoded = await self._run_on_thread(
            lambda: self._processor.encode_unbounded(request.prompt), caller=request.caller
        )
        return encoded.token_ids

    async def detokenize(self, token_ids: SequenceOf[int], *, param: str, caller: str) -> str:
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
        return await self._run_on_thread(
            lambda: self._processor.decode(param, token_ids), caller=caller
        )

    def fail_all(self, error: StreamingError) -> None:
        """Fail all requests that are not sequences yet with `error`."""
        self._queue.fail_waiting(error)
        self._pool.fail_all(error)

    def replace_stuck_threads(self) -> None:
        """Fail requests whose tokenizing exceeds `step_timeout_s`, and replace their threads."""
        timeout_s = self._config.step_timeout_s
        if self._pool.replace_stuck(EngineFailure(), timeout_s=timeout_s):
            logger.error(
                "a tokenizer thread was stuck for more than %g s and is replaced", timeout_s
            )

    def failure_reason(self) -> str | None:
        """Return why no more requests can be admitted, ever; None while they can."""
        num_stuck = self._pool.num_stuck
        return (
            f"{num_stuck} tokenizer threads are stuck" if num_stuck > _MAX_STUCK_THREADS else None
        )

    def shutdown(self, timeout_s: float) -> bool:
        """End the threads, wait up to `timeout_s` seconds, and return whether all have ended.

        Blocks, so call it on another thread than the event loop's.
        """
        return self._pool.shutdown(timeout_s)

    async def _run_on_thread(
        self,
        work: Callable[[], T],
        *,
        caller: str,
        num_requests: int = 1,
        timeout_s: float = math.inf,
    ) -> T:
        """Run `work` on a tokenizer thread; until it is done it counts as waiting requests.

        Raises:
            CapacityError: there is no room, or a caller that holds less has taken the place.
            DeadlineExceeded: it takes longer than `timeout_s` or `request_timeout_s`.
            EngineFailure: it is stuck, or the engine has failed.
        """
        self._check_alive()
        self._capacity.admit(caller, num_requests=num_requests)
        timeout_s = min(timeout_s, self._config.request_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._queue.run(work, caller=caller, num_requests=num_requests)
        except TimeoutError as error:
            raise DeadlineExceeded(timeout_s=timeout_s) from error
