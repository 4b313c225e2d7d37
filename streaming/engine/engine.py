"""The engine: schedule, run, append. Synchronous, on one thread, drivable from a for-loop."""

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
from streaming.scheduling.scheduler import Scheduler
from streaming.scheduling.wait_estimator import Outlook, WaitEstimator
from streaming.sequence import Sequence

logger = logging.getLogger(__name__)

_QUEUE_UPDATE_S = 1.0
"""Waiting requests learn of a new estimate this often."""
_LOOK_S = 0.5
"""Waiting requests are looked at this often, in case the event loop has ended them. It does so only
in steps that take longer, so those that it ends never run."""
_RANKED_PER_STEP = 64
"""Waiting requests that a step may rank, on the average, to tell of new positions sooner: so a
queue of this length learns of them at once, and a long one costs no step more than a short one."""
MAX_FAILED_STEPS = 5
"""So many failed steps in a row mean that the model is broken, as it is after a CUDA error."""


class ModelBroken(RuntimeError):
    """Every step fails: only a new process helps."""


class Engine:
    """Drives all live sequences to their ends.

    Args:
        runner: turns batches into tokens.
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
        self._looked_at = -_LOOK_S
        self._next_deadline_at = math.inf
        """No live sequence is overdue before."""
        self.outlook: Outlook | None = None
        """When requests will begin and end, as of the last look at the queue."""

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    # What comes in.

    def add(self, sequence: Sequence) -> None:
        self._sequences[sequence.generation_id] = sequence
        self._scheduler.add(sequence)
        self._next_deadline_at = min(self._next_deadline_at, sequence.deadline_at)
        self._queue_changed = True

    def cancel(self, generation_id: str) -> None:
        """End a sequence; one that has ended already is left alone: that race is normal."""
        if sequence := self._sequences.get(generation_id):
            sequence.cancel(at=self._clock())
            self._retire(sequence)

    def fail(self, generation_id: str, error: StreamingError) -> None:
        """End a sequence with an error; one that has ended already is left alone."""
        if sequence := self._sequences.get(generation_id):
            sequence.fail(error, at=self._clock())
            self._retire(sequence)

    def displace(self, generation_id: str, error: StreamingError) -> None:
        """End a sequence that has not begun; one that has is left alone: it holds no place."""
        sequence = self._sequences.get(generation_id)
        if sequence is not None and sequence.generation.started is None:
            self.fail(generation_id, error)

    @property
    def num_preemptions(self) -> int:
        """How often a sequence lost its place and had to be computed again."""
        return self._scheduler.num_preemptions

    def set_detached(self, generation_id: str, *, is_detached: bool) -> None:
        """Take that nobody follows a log, or that somebody does again: it yields its place."""
        if sequence := self._sequences.get(generation_id):
            self._scheduler.set_detached(sequence, is_detached=is_detached)
            self._queue_changed = True

    def fail_all(self, error: StreamingError, *, waiting_only: bool = False) -> None:
        """End all sequences, or only those that still wait for their first step."""
        for sequence in tuple(self._scheduler):
            if sequence.generation.started is None or not waiting_only:
                self.fail(sequence.generation_id, error)

    def abandon(self, error: StreamingError) -> None:
        """End all logs without a word to the runner, which can no longer be trusted."""
        sequences, self._sequences = self._sequences, {}
        for generation_id, sequence in sequences.items():
            if sequence.generation.is_ended and not sequence.is_ended:
                sequence.drop()
            elif not sequence.is_ended:
                sequence.fail(error, at=self._clock())
            self._touched[generation_id] = sequence.generation

    # What happens.

    def step(self) -> list[Generation]:
        """Run one step; return the logs that have something new, each once.

        Raises:
            ModelBroken: the last `MAX_FAILED_STEPS` steps have failed.
        """
        self._end_overdue()
        if (batch := self._scheduler.schedule()) is not None:
            self._run(batch)
        self._tell_waiting()
        return self.take_touched()

    def take_touched(self) -> list[Generation]:
        """Return the logs that have something new since the last call."""
        touched, self._touched = self._touched, {}
        return list(touched.values())

    def _run(self, batch: Batch) -> None:
        started_at = self._clock()
        for chunk in batch.chunks:
            generation = chunk.sequence.generation
            if generation.started is None:
                generation.start(cached_tokens=chunk.start, at=started_at)
                self._touched[generation.generation_id] = generation
                self._queue_changed = True
        yielding = [chunk.sequence for chunk in batch.chunks if chunk.yields_token]
        try:
            tokens = list(zip(yielding, self._runner.run(batch), strict=True))
        except BaseException as error:
            logger.exception("a step of %d sequences failed", len(batch.chunks))
            for chunk in batch.chunks:
                self.fail(chunk.sequence.generation_id, EngineFailure())
            self._num_failed_steps += 1
            if self._num_failed_steps == MAX_FAILED_STEPS:
                raise ModelBroken(f"{MAX_FAILED_STEPS} steps in a row have failed") from error
            return
        self._num_failed_steps = 0
        now = self._clock()
        duration_s = now - started_at
        self._scheduler.advance(batch, duration_s=duration_s)
        for sequence, token in tokens:
            if isinstance(token, FailedRow):
                self._fail_row(sequence, token)
                continue
            self._scheduler.trust(sequence)
            try:
                self._append(sequence, token, at=now)
            except BaseException:  # its own tokenizer, grammar or parser, or a panic in one
                logger.exception("%s failed on its own token", sequence.generation_id)
                self.fail(sequence.generation_id, EngineFailure())
                continue
            self._touched[sequence.generation_id] = sequence.generation
            if sequence.is_ended:
                self._retire(sequence)
        self._estimator.observe_step(
            num_tokens=len(tokens), duration_s=duration_s, num_running=len(batch.chunks)
        )

    def _append(self, sequence: Sequence, token: SampledToken, *, at: float) -> None:
        if token.prompt_logprobs is not None:
            sequence.score_prompt(token.prompt_logprobs, at=at)
        sequence.append(token.token_id, at=at, logprobs=token.logprobs)

    def _fail_row(self, sequence: Sequence, row: FailedRow) -> None:
        """End a sequence that gets no token; keep what it shares unless the model failed."""
        if row.error is None:
            self._scheduler.forget(sequence)
        if not isinstance(row.error, RequestError):
            logger.error("%s failed: %s", sequence.generation_id, row.reason)
        self.fail(sequence.generation_id, row.error or EngineFailure())

    def _end_overdue(self) -> None:
        """Take out what is overdue, or was ended by the event loop while this thread was stuck."""
        now = self._clock()
        looks_at_all = now >= min(self._next_deadline_at, self._looked_at + _LOOK_S)
        for sequence in (
            tuple(self._sequences.values()) if looks_at_all else self._scheduler.running
        ):
            if sequence.generation.is_ended:
                sequence.drop()
                self._retire(sequence)
            elif sequence.deadline_at <= now:
                self.fail(sequence.generation_id, sequence.deadline_error)
        if looks_at_all:
            self._looked_at = now
            deadlines = (sequence.deadline_at for sequence in self._sequences.values())
            self._next_deadline_at = min(deadlines, default=math.inf)

    def _retire(self, sequence: Sequence) -> None:
        """Take an ended sequence out of everything that holds it."""
        del self._sequences[sequence.generation_id]
        self._scheduler.remove(sequence)
        self._touched[sequence.generation_id] = sequence.generation
        self._queue_changed = True
        if sequence.generation.started is not None:
            self._runner.release(sequence)
            self._estimator.observe_end(num_tokens=len(sequence.output_ids))
        logger.info("%s", _Summary(sequence.generation))

    def _tell_waiting(self) -> None:
        now = self._clock()
        self._num_rankable += _RANKED_PER_STEP
        is_worth_it = self._queue_changed and self._scheduler.num_waiting <= self._num_rankable
        if not is_worth_it and now - self._queue_updated_at < _QUEUE_UPDATE_S:
            return
        self._queue_changed = False
        self._queue_updated_at = now
        self._num_rankable = 0
        running, waiting = self._scheduler.running, self._scheduler.waiting
        self.outlook = self._estimator.outlook(running, waiting, at=now)
        waits_s: Iterable[float | None] = itertools.repeat(None, len(waiting))
        if self.outlook is not None:
            waits_s = (each.begins_in_s for each in self.outlook.expected[len(running) :])
        for position, (sequence, wait_s) in enumerate(zip(waiting, waits_s, strict=True)):
            generation = sequence.generation
            queued = Queued(position, wait_s)
            # One that lost its place has begun all the same: its readers wait for no turn.
            if generation.started is None and queued != generation.queued:
                generation.queued = queued
                self._touched[generation.generation_id] = generation

    def check_integrity(self) -> None:
        """Assert that the parts agree on what is alive."""
        live = set(self._scheduler)
        assert live == set(self._sequences.values())
        self._scheduler.check_integrity()
        assert not any(sequence.is_ended for sequence in live)


def _make_scheduler(runner: ModelRunner) -> Scheduler:
    if runner.cache is None:
        return Scheduler(max_num_seqs=runner.max_num_seqs)
    return Scheduler(
        max_num_seqs=runner.max_num_seqs,
        cache=BlockManager(
            num_blocks=runner.cache.num_blocks,
            block_size=runner.cache.block_size,
            has_free_memory=runner.cache.has_free_memory,
        ),
        prefill_budget=PrefillBudget(max_batch_tokens=runner.cache.max_batch_tokens),
    )


class _Summary:
    """The one log line of a generation, written only if someone logs it."""

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
