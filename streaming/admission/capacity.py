"""Limits how much waits and how much is open, per caller and in total.

Each caller has limits of its own, so that a few callers cannot take all of the capacity. When a
total limit is reached, the capacity is shared: a new request evicts waiting requests of the caller
that has most generations open, the newest first, while that caller has more open than the new
caller would have. So a caller with one request is refused only if no caller has two.

Runs on the event loop. Usage is counted anew at each call from the logs themselves, so no counter
can drift. `AdmissionController` is the only caller.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from streaming.config import EngineConfig
from streaming.errors import CallerLimitReached, InvalidRequest, Overloaded
from streaming.log.generation import Generation
from streaming.scheduling.wait_estimator import Expected, Forecast

_DEFAULT_RETRY_AFTER_S = 1.0
"""`retry_after_s` before there is a forecast."""
_MIN_RETRY_AFTER_S = 0.05
"""`retry_after_s` if the forecast expected room before now."""


@dataclass(frozen=True, slots=True)
class Evictable:
    """Waiting work of one caller that can be evicted.

    Attributes:
        caller: the caller that it counts for.
        num_requests: number of requests that it counts as.
        num_tokens: tokens of its prompts; 0 if they are not tokenized yet.
        evict: ends it with an error.
    """

    caller: str
    num_requests: int
    num_tokens: int
    evict: Callable[[Overloaded], None]


@dataclass(frozen=True, slots=True)
class _Limit:
    unit: str
    total: int
    per_caller: int

    @classmethod
    def of(cls, unit: str, total: int, per_caller: int | None) -> _Limit:
        return cls(unit, total, total if per_caller is None else min(per_caller, total))


@dataclass(slots=True)
class _Usage:
    """What each caller holds at this moment.

    Attributes:
        requests: waiting requests, those being tokenized included.
        tokens: prompt tokens of the waiting requests, once tokenized.
        generations: open generations, waiting or running.
    """

    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    generations: Counter[str] = field(default_factory=Counter)


class Capacity:
    """Admits requests up to the limits.

    Args:
        config: the limits.
        max_running: most generations that run at once.
        open_logs: returns the logs that the store has not finished, the oldest first.
        num_tokenizing: returns the number of requests in the tokenizer queue, by caller.
        evictable_tokenizing: returns those that have not started, the oldest first.
        evict_waiting: ends a waiting generation at the engine's next step, unless it has started.
        forecast: returns the expected starts and ends; None if there is no forecast.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        max_running: int,
        open_logs: Callable[[], Iterable[Generation]],
        num_tokenizing: Callable[[], Counter[str]],
        evictable_tokenizing: Callable[[], Iterable[Evictable]],
        evict_waiting: Callable[[Generation, Overloaded], None],
        forecast: Callable[[], Forecast | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        max_generations = config.max_generations or max_running + config.max_waiting_requests
        self._requests = _Limit.of(
            "requests", config.max_waiting_requests, config.max_waiting_requests_per_caller
        )
        self._tokens = _Limit.of(
            "prompt tokens", config.max_waiting_tokens, config.max_waiting_tokens_per_caller
        )
        self._generations = _Limit.of(
            "generations", max_generations, config.max_generations_per_caller
        )
        self._open_logs = open_logs
        self._num_tokenizing = num_tokenizing
        self._evictable_tokenizing = evictable_tokenizing
        self._evict_waiting = evict_waiting
        self._forecast = forecast
        self._clock = clock
        self._evicted: set[str] = set()
        """Ids of logs that have been evicted, but that the engine has not ended yet."""

    def check(
        self, caller: str, *, num_requests: int, prompts: SequenceOf[SequenceOf[int]] = ()
    ) -> None:
        """Check that there is room for requests, and change nothing.

        Args:
            caller: the caller.
            num_requests: the number of its requests.
            prompts: token ids of all the prompts, once they are known.

        Raises:
            Overloaded: a total limit is reached, and no caller has more than its share.
            CallerLimitReached: the caller has reached a limit of its own.
            InvalidRequest: the prompts together exceed what may ever wait.
        """
        self._select_victims(caller, num_requests, prompts)

    def admit(
        self, caller: str, *, num_requests: int, prompts: SequenceOf[SequenceOf[int]] = ()
    ) -> None:
        """Make room for requests by evicting others, or refuse them; arguments as for `check`.

        The caller of this method must have the requests counted from now on.

        Raises:
            Overloaded: a total limit is reached, and no caller has more than its share.
            CallerLimitReached: the caller has reached a limit of its own.
            InvalidRequest: the prompts together exceed what may ever wait.
        """
        for victim, limit, num_used in self._select_victims(caller, num_requests, prompts):
            victim.evict(
                Overloaded(
                    num_waiting=num_used,
                    max_waiting=limit.total,
                    retry_after_s=self._room_in_s(_starts, victim.num_requests),
                    unit=limit.unit,
                    was_displaced=True,
                )
            )

    def _select_victims(
        self, caller: str, num_requests: int, prompts: SequenceOf[SequenceOf[int]]
    ) -> list[tuple[Evictable, _Limit, int]]:
        """Return what must be evicted for the requests, for which limit, and its usage before."""
        num_tokens = sum(map(len, prompts))
        # A single prompt of any length may wait when nothing else does. Several choices for one
        # prompt share one list, and so count as a single prompt here.
        if any(prompt is not prompts[0] for prompt in prompts):
            max_tokens = self._tokens.per_caller
            if num_tokens > max_tokens:
                reason = f"must have at most {max_tokens} tokens in total (got {num_tokens})"
                raise InvalidRequest(param="prompt", reason=reason)
        usage = self._count_usage()
        self._check_caller(usage, caller, num_requests, num_tokens)
        return self._make_room(usage, caller, num_requests, num_tokens)

    def _check_caller(self, usage: _Usage, caller: str, num_requests: int, num_tokens: int) -> None:
        checks = [
            (self._requests, usage.requests, num_requests, "waiting requests", _starts),
            (self._generations, usage.generations, num_requests, "open generations", _ends),
        ]
        if usage.tokens[caller] and num_tokens:
            unit = "waiting prompt tokens"
            checks.append((self._tokens, usage.tokens, num_tokens, unit, _tokens_start))
        for limit, counts, num_new, unit, events in checks:
            num_over = counts[caller] + num_new - limit.per_caller
            # If one caller may use everything, the error for the total limit says more.
            if num_over > 0 and limit.per_caller < limit.total:
                raise CallerLimitReached(
                    num_held=counts[caller],
                    max_held=limit.per_caller,
                    unit=unit,
                    retry_after_s=self._room_in_s(events, num_over, caller),
                )

    def _make_room(
        self, usage: _Usage, caller: str, num_requests: int, num_tokens: int
    ) -> list[tuple[Evictable, _Limit, int]]:
        limits = [
            (self._requests, usage.requests, num_requests, _starts),
            (self._generations, usage.generations, num_requests, _ends),
        ]
        if num_tokens:
            limits.append((self._tokens, usage.tokens, num_tokens, _tokens_start))
        num_open_after = usage.generations[caller] + num_requests
        victims: list[tuple[Evictable, _Limit, int]] = []
        evictables: dict[str, list[Evictable]] | None = None
        for limit, counts, num_new, events in limits:
            num_used = counts.total()
            # A single prompt of any length may wait when nothing else does.
            while counts.total() + num_new > limit.total and (
                limit is not self._tokens or counts.total()
            ):
                evictables = self._evictables() if evictables is None else evictables
                victim = _pop_newest(
                    evictables,
                    usage,
                    num_open_after,
                    exclude=caller,
                    by_tokens=counts is usage.tokens,
                )
                if victim is None:
                    raise Overloaded(
                        num_waiting=num_used,
                        max_waiting=limit.total,
                        retry_after_s=self._room_in_s(events, num_used + num_new - limit.total),
                        unit=limit.unit,
                    )
                victims.append((victim, limit, num_used))
                # Take it off the usage, for the limits that follow.
                usage.requests[victim.caller] -= victim.num_requests
                usage.generations[victim.caller] -= victim.num_requests
                usage.tokens[victim.caller] -= victim.num_tokens
        return victims

    def _count_usage(self) -> _Usage:
        """Return the usage of all callers now, without what has been evicted."""
        num_tokenizing = self._num_tokenizing()
        usage = _Usage(requests=Counter(num_tokenizing), generations=Counter(num_tokenizing))
        still_open = set()
        for log in self._open_logs():
            if log.is_ended:
                continue
            if log.started is None:
                if log.generation_id in self._evicted:
                    still_open.add(log.generation_id)
                    continue
                usage.requests[log.caller] += 1
                usage.tokens[log.caller] += log.prompt_tokens
            usage.generations[log.caller] += 1
        self._evicted = still_open
        return usage

    def _evictables(self) -> dict[str, list[Evictable]]:
        """Return what can be evicted of each caller, the newest last."""
        waiting = (
            Evictable(log.caller, 1, log.prompt_tokens, self._evictor(log))
            for log in self._open_logs()
            if log.started is None and not log.is_ended
            if log.generation_id not in self._evicted
        )
        evictables: dict[str, list[Evictable]] = {}
        for each in itertools.chain(waiting, self._evictable_tokenizing()):
            evictables.setdefault(each.caller, []).append(each)
        return evictables

    def _evictor(self, log: Generation) -> Callable[[Overloaded], None]:
        def evict(error: Overloaded) -> None:
            # The engine ends the log at its next step; until then, this keeps it out of the usage.
            self._evicted.add(log.generation_id)
            self._evict_waiting(log, error)

        return evict

    # When to try again.

    def _room_in_s(
        self,
        events: Callable[[Expected], tuple[float, int]],
        num_needed: int,
        caller: str | None = None,
    ) -> float:
        """Return the expected seconds until `num_needed` units are free.

        Args:
            events: returns when an open generation frees units, in seconds after the forecast was
                made, and how many.
            num_needed: units of the limit: requests, generations or tokens.
            caller: count only what this caller frees; None counts all callers.
        """
        forecast = self._forecast()
        if forecast is None or not forecast.expected:
            return _DEFAULT_RETRY_AFTER_S
        in_s = 0.0
        for event_in_s, num_freed in sorted(
            events(expected)
            for expected in forecast.expected
            if caller in (None, expected.generation.caller)
        ):
            if num_freed:
                in_s = event_in_s
                num_needed -= num_freed
            if num_needed <= 0:
                break
        if num_needed > 0:  # the rest is newer than the forecast, and so comes after all in it
            in_s = max(expected.ends_in_s for expected in forecast.expected)
        return max(_MIN_RETRY_AFTER_S, forecast.at + in_s - self._clock())


def _pop_newest(
    evictables: dict[str, list[Evictable]],
    usage: _Usage,
    num_open_after: int,
    *,
    exclude: str,
    by_tokens: bool,
) -> Evictable | None:
    """Remove and return the newest work of the caller that uses most; None if there is none.

    Args:
        evictables: what can be evicted, by caller.
        usage: the usage of each caller.
        num_open_after: generations of the new caller after admission; only callers with more of
            them open lose any.
        exclude: the new caller.
        by_tokens: order callers by tokens, and return only work that has some.
    """
    counts = usage.tokens if by_tokens else usage.generations
    for caller in sorted(evictables, key=lambda caller: counts[caller], reverse=True):
        if caller != exclude and usage.generations[caller] > num_open_after:
            for index in reversed(range(len(evictables[caller]))):
                if evictables[caller][index].num_tokens or not by_tokens:
                    return evictables[caller].pop(index)
    return None


def _starts(expected: Expected) -> tuple[float, int]:
    return expected.starts_in_s, int(expected.generation.started is None)


def _tokens_start(expected: Expected) -> tuple[float, int]:
    log = expected.generation
    return expected.starts_in_s, log.prompt_tokens if log.started is None else 0


def _ends(expected: Expected) -> tuple[float, int]:
    return expected.ends_in_s, int(not expected.generation.is_ended)
