"""The engine: one step schedules a batch, runs it, and appends its tokens to the logs.

Synchronous and single-threaded, so tests can drive it from a for-loop. The server drives it on the
engine thread.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable

from streaming.backend import Batch, FailedRow, ModelRunner, SampledToken
from streaming.errors import EngineFailure, RequestError, StreamingError
from streaming.log.generation import Generation, Queued
from streaming.scheduling.block_manager import BlockManager
from streaming.scheduling.prefill_budget import PrefillBudget
from streaming.scheduling.schedule import Schedule
from streaming.scheduling.scheduler import Scheduler
from streaming.scheduling.wait_estimator import Forecast, WaitEstimator
from streaming.sequence import Sequence

logger = logging.getLogger(__name__)

_QUEUE_UPDATE_S = 1.0
"""Period in which waiting requests get a new estimate."""
_SCAN_PERIOD_S = 0.5
"""Period in which waiting requests are checked for logs that the event loop has ended. The loop
ends logs only during steps that take longer than this, so a request ended there never runs."""
_RANKED_PER_STEP = 64
"""Waiting requests per step, on average, whose positions may be updated before the period ends. So
a queue of this length is updated at once, and a step costs no more with a long queue than with a
short one."""
MAX_FAILED_STEPS = 5
"""Consecutive failed steps after which the model counts as broken, as it is after a CUDA error."""


class ModelBroken(RuntimeError):
    """Every step fails; restart the process."""


class Engine:
    """Runs all live sequences until they end.

    Args:
        runner: computes the tokens of each batch.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._scheduler = _make_scheduler(runner)
        self._sequences: dict[str, Sequence] = {}
        self._estimator = WaitEstimator()
        self._touched: dict[str, Generation] = {}
        self._queue_changed = False
        self._queue_updated_at = -_QUEUE_UPDATE_S
        self._num_failed_steps = 0
        self._num_rankable = 0
        self._scanned_at = -_SCAN_PERIOD_S
        self._next_deadline_at = math.inf
        """The earliest deadline of a live sequence, in monotonic seconds."""
        self.forecast: Forecast | None = None
        """When requests will start and end, as of the last queue update."""

    @property
    def has_work(self) -> bool:
        """Whether there is a live sequence."""
        return bool(self._sequences)

    # Commands.

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._sequences[sequence.generation_id] = sequence
        self._scheduler.add(sequence)
        self._next_deadline_at = min(self._next_deadline_at, sequence.deadline_at)
        self._queue_changed = True

    def cancel(self, generation_id: str) -> None:
        """Cancel a sequence; a no-op if it has already ended, which is a normal race."""
        if sequence := self._sequences.get(generation_id):
            sequence.cancel(at=self._clock())
            self._retire(sequence)

    def fail(self, generation_id: str, error: StreamingError) -> None:
        """End a sequence with an error; a no-op if it has already ended."""
        if sequence := self._sequences.get(generation_id):
            sequence.fail(error, at=self._clock())
            self._retire(sequence)

    def evict_waiting(self, generation_id: str, error: StreamingError) -> None:
        """End a sequence with an error if it has not started: only then does it fill the queue."""
        sequence = self._sequences.get(generation_id)
        if sequence is not None and sequence.generation.started is None:
            self.fail(generation_id, error)

    @property
    def num_preemptions(self) -> int:
        """How often a sequence was preempted and had to be recomputed."""
        return self._scheduler.num_preemptions

    def set_detached(self, generation_id: str, *, is_detached: bool) -> None:
        """Mark a sequence as detached or attached again; a detached one loses its place first."""
        if sequence := self._sequences.get(generation_id):
            self._scheduler.set_detached(sequence, is_detached=is_detached)
            self._queue_changed = True

    def fail_all(self, error: StreamingError, *, waiting_only: bool = False) -> None:
        """End all sequences with an error, or only those that still wait for their first step."""
        for sequence in tuple(self._scheduler):
            if sequence.generation.started is None or not waiting_only:
                self.fail(sequence.generation_id, error)

    def fail_all_logs(self, error: StreamingError) -> None:
        """End all logs with an error, without the scheduler and the runner: both may be broken.

        Any thread may call this once the engine thread has stopped stepping.
        """
        sequences, self._sequences = self._sequences, {}
        for generation_id, sequence in sequences.items():
            if sequence.generation.is_ended and not sequence.is_ended:
                sequence.drop()
            elif not sequence.is_ended:
                sequence.fail(error, at=self._clock())
            self._touched[generation_id] = sequence.generation

    # Steps.

    def step(self) -> list[Generation]:
        """Run one step, and return the logs that have new records, each once.

        Raises:
            ModelBroken: the last `MAX_FAILED_STEPS` steps have failed.
        """
        self._end_overdue()
        if (schedule := self._scheduler.schedule()) is not None:
            self._run(schedule)
        self._update_queue()
        return self.take_touched()

    def take_touched(self) -> list[Generation]:
        """Return the logs that have new records since the last call."""
        touched, self._touched = self._touched, {}
        return list(touched.values())

    def _run(self, schedule: Schedule) -> None:
        started_at = self._clock()
        schedule, batch = self._make_batch(schedule)
        if not batch.chunks:
            return
        for chunk in schedule.chunks:
            generation = chunk.sequence.generation
            if generation.started is None:
                generation.start(cached_tokens=chunk.start, at=started_at)
                self._touched[generation.generation_id] = generation
                self._queue_changed = True
        yielding = [
            scheduled.sequence
            for scheduled, chunk in zip(schedule.chunks, batch.chunks, strict=True)
            if chunk.yields_token
        ]
        try:
            tokens = list(zip(yielding, self._runner.run(batch), strict=True))
        except BaseException as error:
            logger.exception("a step of %d sequences failed", len(batch.chunks))
            for chunk in schedule.chunks:
                self.fail(chunk.sequence.generation_id, EngineFailure())
            self._num_failed_steps += 1
            if self._num_failed_steps == MAX_FAILED_STEPS:
                raise ModelBroken(f"{MAX_FAILED_STEPS} steps in a row have failed") from error
            return
        self._num_failed_steps = 0
        now = self._clock()
        duration_s = now - started_at
        self._scheduler.advance(schedule, duration_s=duration_s)
        for sequence, token in tokens:
            if isinstance(token, FailedRow):
                self._fail_row(sequence, token)
                continue
            self._scheduler.mark_verified(sequence)
            try:
                self._append(sequence, token, at=now)
            except BaseException:  # of its tokenizer, grammar or parser, panics included
                logger.exception("%s failed on its own token", sequence.generation_id)
                self.fail(sequence.generation_id, EngineFailure())
                continue
            self._touched[sequence.generation_id] = sequence.generation
            if sequence.is_ended:
                self._retire(sequence)
        self._estimator.observe_step(
            num_tokens=len(tokens), duration_s=duration_s, num_running=len(batch.chunks)
        )

    def _make_batch(self, schedule: Schedule) -> tuple[Schedule, Batch]:
        """Return the chunks of a step, and the same chunks as plain data for the runner.

        Fails and leaves out a sequence whose grammar matcher raises.
        """
        scheduled, chunks = [], []
        for chunk in schedule.chunks:
            try:
                chunks.append(chunk.to_chunk())
            except BaseException:  # of its matcher, panics included
                generation_id = chunk.sequence.generation_id
                logger.exception("%s: the grammar's matcher failed", generation_id)
                self.fail(generation_id, EngineFailure())
            else:
                scheduled.append(chunk)
        return Schedule(tuple(scheduled)), Batch(tuple(chunks))

    def _append(self, sequence: Sequence, token: SampledToken, *, at: float) -> None:
        if token.prompt_logprobs is not None:
            sequence.score_prompt(token.prompt_logprobs, at=at)
        sequence.append(token.token_id, at=at, logprobs=token.logprobs)

    def _fail_row(self, sequence: Sequence, row: FailedRow) -> None:
        """End a sequence that gets no token; uncache its blocks if the model failed."""
        if row.error is None:
            self._scheduler.uncache_unverified(sequence)
        if not isinstance(row.error, RequestError):
            logger.error("%s failed: %s", sequence.generation_id, row.reason)
        self.fail(sequence.generation_id, row.error or EngineFailure())

    def _end_overdue(self) -> None:
        """Retire sequences past their deadline, and those that the event loop has ended.

        The loop ends logs itself while this thread is stuck in a step.
        """
        now = self._clock()
        scans_all = now >= min(self._next_deadline_at, self._scanned_at + _SCAN_PERIOD_S)
        for sequence in tuple(self._sequences.values()) if scans_all else self._scheduler.running:
            if sequence.generation.is_ended:
                sequence.drop()
                self._retire(sequence)
            elif sequence.deadline_at <= now:
                self.fail(sequence.generation_id, sequence.deadline_error)
        if scans_all:
            self._scanned_at = now
            deadlines = (sequence.deadline_at for sequence in self._sequences.values())
            self._next_deadline_at = min(deadlines, default=math.inf)

    def _retire(self, sequence: Sequence) -> None:
        """Remove an ended sequence from the scheduler and the runner, and log its summary."""
        del self._sequences[sequence.generation_id]
        self._scheduler.remove(sequence)
        self._touched[sequence.generation_id] = sequence.generation
        self._queue_changed = True
        if sequence.generation.started is not None:
            self._runner.release(sequence.generation_id)
            self._estimator.observe_end(num_tokens=len(sequence.output_ids))
        logger.info("%s", _Summary(sequence.generation))

    def _update_queue(self) -> None:
        """Write positions and wait estimates to the logs of waiting requests."""
        now = self._clock()
        self._num_rankable += _RANKED_PER_STEP
        is_affordable = self._queue_changed and self._scheduler.num_waiting <= self._num_rankable
        if not is_affordable and now - self._queue_updated_at < _QUEUE_UPDATE_S:
            return
        self._queue_changed = False
        self._queue_updated_at = now
        self._num_rankable = 0
        running, waiting = self._scheduler.running, self._scheduler.waiting
        self.forecast = self._estimator.forecast(running, waiting, at=now)
        waits_s: Iterable[float | None] = itertools.repeat(None, len(waiting))
        if self.forecast is not None:
            waits_s = (each.starts_in_s for each in self.forecast.expected[len(running) :])
        for position, (sequence, wait_s) in enumerate(zip(waiting, waits_s, strict=True)):
            generation = sequence.generation
            queued = Queued(position, wait_s)
            # A preempted sequence has started already: its readers need no queue position.
            if generation.started is None and queued != generation.queued:
                generation.queued = queued
                self._touched[generation.generation_id] = generation

    def check_integrity(self) -> None:
        """Assert that engine and scheduler hold the same live sequences."""
        live = set(self._scheduler)
        assert live == set(self._sequences.values())
        self._scheduler.check_integrity()
        assert not any(sequence.is_ended for sequence in live)


def _make_scheduler(runner: ModelRunner) -> Scheduler:
    if runner.cache is None:
        return Scheduler(max_num_seqs=runner.max_num_seqs)
    return Scheduler(
        max_num_seqs=runner.max_num_seqs,
        block_manager=BlockManager(
            num_blocks=runner.cache.num_blocks,
            block_size=runner.cache.block_size,
            has_free_memory=runner.cache.has_free_memory,
        ),
        prefill_budget=PrefillBudget(max_batch_tokens=runner.cache.max_batch_tokens),
    )


class _Summary:
    """Formats the log line of a generation, only if the line is written."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def __str__(self) -> str:
        generation, usage, timings = (
            self._generation,
            self._generation.usage,
            self._generation.timings,
        )
        outcome = generation.outcome
        ending = getattr(outcome, "finish_reason", None) or getattr(outcome, "error", None)
        times = " ".join(
            f"{name}={value:.3f}"
            for name in ("queue_s", "ttft_s", "total_s", "tokens_per_s")
            if (value := getattr(timings, name)) is not None
        )
        return (
            f"generation_id={generation.generation_id} prompt_tokens={usage.prompt_tokens} "
            f"completion_tokens={usage.completion_tokens} ended={ending!s} {times}"
        )
