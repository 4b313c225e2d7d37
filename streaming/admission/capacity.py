"""Who may come in: how much waits and how much is open, of each caller and in all.

A caller has limits of its own, so that a few cannot hold everything. Where a limit for all is
reached all the same, places are shared: a newcomer takes them back from the caller that has most
open, its newest first, as long as that one has more open than the newcomer's caller then has. So a
caller with one request is refused only where nobody has two.

Lives on the event loop's thread. What waits is counted anew at each look, from the logs themselves,
so no count can drift.
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
from streaming.scheduling.wait_estimator import Expected, Outlook

_DEFAULT_RETRY_AFTER_S = 1.0
"""Said to a refused caller before a throughput has been measured."""
_MIN_RETRY_AFTER_S = 0.05
"""Said where room was expected before now."""


@dataclass(frozen=True, slots=True)
class Place:
    """What waits, and can be told to give way.

    Attributes:
        num_requests: counted as so many.
        num_tokens: of its prompts; 0 where they are not known yet.
        give_way: ends it with an error.
    """

    caller: str
    num_requests: int
    num_tokens: int
    give_way: Callable[[Overloaded], None]


@dataclass(frozen=True, slots=True)
class _Limit:
    unit: str
    in_all: int
    per_caller: int

    @classmethod
    def of(cls, unit: str, in_all: int, per_caller: int | None) -> _Limit:
        return cls(unit, in_all, in_all if per_caller is None else min(per_caller, in_all))


@dataclass(slots=True)
class _Held:
    """What each caller holds at this moment."""

    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    generations: Counter[str] = field(default_factory=Counter)


class Capacity:
    """Admits requests up to the limits.

    Args:
        config: the limits.
        max_running: most generations that run at once.
        open_logs: returns the logs that have not been settled, the oldest first.
        tokenizing: returns how many requests of each caller are being tokenised.
        tokenizing_places: returns those of them that have not begun, the oldest first.
        displace: ends a generation that waits, at the engine's next step; one that has begun by
            then is left alone.
        outlook: returns when generations are expected to begin and end, where that is known.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        max_running: int,
        open_logs: Callable[[], Iterable[Generation]],
        tokenizing: Callable[[], Counter[str]],
        tokenizing_places: Callable[[], Iterable[Place]],
        displace: Callable[[Generation, Overloaded], None],
        outlook: Callable[[], Outlook | None],
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
        self._tokenizing = tokenizing
        self._tokenizing_places = tokenizing_places
        self._displace = displace
        self._outlook = outlook
        self._clock = clock
        self._displaced: set[str] = set()
        """Ids of logs that wait and have been told to give way."""

    def check(
        self, caller: str, *, num_requests: int, prompts: SequenceOf[SequenceOf[int]] = ()
    ) -> None:
        """Refuse what there is no room for, and change nothing.

        Args:
            prompts: of all the requests, once they are known.

        Raises:
            Overloaded: all places are taken, and no caller has more than its share.
            CallerLimitReached: the caller has as much as one may.
            InvalidRequest: the prompts are too long together, whenever they come.
        """
        self._who_gives_way(caller, num_requests, prompts)

    def admit(
        self, caller: str, *, num_requests: int, prompts: SequenceOf[SequenceOf[int]] = ()
    ) -> None:
        """Make room for requests, which are to be counted from now on, or refuse them.

        Raises:
            as `check` does.
        """
        for place, limit, num_held in self._who_gives_way(caller, num_requests, prompts):
            place.give_way(
                Overloaded(
                    num_waiting=num_held,
                    max_waiting=limit.in_all,
                    retry_after_s=self._room_in_s(_begins, place.num_requests),
                    unit=limit.unit,
                    was_displaced=True,
                )
            )

    def _who_gives_way(
        self, caller: str, num_requests: int, prompts: SequenceOf[SequenceOf[int]]
    ) -> list[tuple[Place, _Limit, int]]:
        """Return what has to make room for the requests, if anything, and for which limit.

        With each comes how much was held of that limit.
        """
        num_tokens = sum(map(len, prompts))
        # A prompt of any length may wait alone; to all choices of it, admission gives one list.
        if any(prompt is not prompts[0] for prompt in prompts):
            max_tokens = self._tokens.per_caller
            if num_tokens > max_tokens:
                reason = f"{num_tokens} tokens in all are more than the {max_tokens} that may wait"
                raise InvalidRequest(param="prompt", reason=reason)
        held = self._look()
        self._check_own(held, caller, num_requests, num_tokens)
        return self._make_room(held, caller, num_requests, num_tokens)

    def _check_own(self, held: _Held, caller: str, num_requests: int, num_tokens: int) -> None:
        checks = [
            (self._requests, held.requests, num_requests, "waiting requests", _begins),
            (self._generations, held.generations, num_requests, "open generations", _ends),
        ]
        if held.tokens[caller] and num_tokens:
            unit = "waiting prompt tokens"
            checks.append((self._tokens, held.tokens, num_tokens, unit, _tokens_begin))
        for limit, counts, num_new, unit, events in checks:
            num_over = counts[caller] + num_new - limit.per_caller
            # Of a caller that may have everything, the limit for all tells more.
            if num_over > 0 and limit.per_caller < limit.in_all:
                raise CallerLimitReached(
                    num_held=counts[caller],
                    max_held=limit.per_caller,
                    unit=unit,
                    retry_after_s=self._room_in_s(events, num_over, caller),
                )

    def _make_room(
        self, held: _Held, caller: str, num_requests: int, num_tokens: int
    ) -> list[tuple[Place, _Limit, int]]:
        limits = [
            (self._requests, held.requests, num_requests, _begins),
            (self._generations, held.generations, num_requests, _ends),
        ]
        if num_tokens:
            limits.append((self._tokens, held.tokens, num_tokens, _tokens_begin))
        num_then = held.generations[caller] + num_requests
        giving: list[tuple[Place, _Limit, int]] = []
        places: dict[str, list[Place]] | None = None
        for limit, counts, num_new, events in limits:
            num_held = counts.total()
            # A prompt of any length may wait alone.
            while counts.total() + num_new > limit.in_all and (
                limit is not self._tokens or counts.total()
            ):
                places = self._places() if places is None else places
                place = _pop_newest(
                    places, held, num_then, but=caller, by_tokens=counts is held.tokens
                )
                if place is None:
                    raise Overloaded(
                        num_waiting=num_held,
                        max_waiting=limit.in_all,
                        retry_after_s=self._room_in_s(events, num_held + num_new - limit.in_all),
                        unit=limit.unit,
                    )
                giving.append((place, limit, num_held))
                held.requests[place.caller] -= place.num_requests
                held.generations[place.caller] -= place.num_requests
                held.tokens[place.caller] -= place.num_tokens
        return giving

    def _look(self) -> _Held:
        """Count what is held now."""
        tokenizing = self._tokenizing()
        held = _Held(requests=Counter(tokenizing), generations=Counter(tokenizing))
        still_displaced = set()
        for log in self._open_logs():
            if log.is_ended:
                continue
            if log.started is None:
                if log.generation_id in self._displaced:
                    still_displaced.add(log.generation_id)
                    continue
                held.requests[log.caller] += 1
                held.tokens[log.caller] += log.prompt_tokens
            held.generations[log.caller] += 1
        self._displaced = still_displaced
        return held

    def _places(self) -> dict[str, list[Place]]:
        """Return what could give way of each caller, the newest last."""
        waiting = (
            Place(log.caller, 1, log.prompt_tokens, self._displacing(log))
            for log in self._open_logs()
            if log.started is None and not log.is_ended
            if log.generation_id not in self._displaced
        )
        places: dict[str, list[Place]] = {}
        for place in itertools.chain(waiting, self._tokenizing_places()):
            places.setdefault(place.caller, []).append(place)
        return places

    def _displacing(self, log: Generation) -> Callable[[Overloaded], None]:
        def give_way(error: Overloaded) -> None:
            self._displaced.add(log.generation_id)
            self._displace(log, error)

        return give_way

    # When to try again.

    def _room_in_s(
        self,
        events: Callable[[Expected], tuple[float, int]],
        num_needed: int,
        caller: str | None = None,
    ) -> float:
        """Return in how many seconds so much is free of what one caller holds, or all.

        Args:
            events: when an open generation frees something, from the outlook's moment, and how
                much.
        """
        outlook = self._outlook()
        if outlook is None or not outlook.expected:
            return _DEFAULT_RETRY_AFTER_S
        in_s = 0.0
        for event_in_s, num_freed in sorted(
            events(expected)
            for expected in outlook.expected
            if caller in (None, expected.generation.caller)
        ):
            if num_freed:
                in_s = event_in_s
                num_needed -= num_freed
            if num_needed <= 0:
                break
        if num_needed > 0:  # what came after the outlook has its turn after all that it tells of
            in_s = max(expected.ends_in_s for expected in outlook.expected)
        return max(_MIN_RETRY_AFTER_S, outlook.at + in_s - self._clock())


def _pop_newest(
    places: dict[str, list[Place]], held: _Held, num_then: int, *, but: str, by_tokens: bool
) -> Place | None:
    """Take out the newest place of the caller that has most, if that has more open than `num_then`.

    Args:
        but: the caller that asks.
        by_tokens: of the caller that has most tokens, one that holds some.
    """
    most = held.tokens if by_tokens else held.generations
    for caller in sorted(places, key=lambda caller: most[caller], reverse=True):
        if caller != but and held.generations[caller] > num_then:
            for index in reversed(range(len(places[caller]))):
                if places[caller][index].num_tokens or not by_tokens:
                    return places[caller].pop(index)
    return None


def _begins(expected: Expected) -> tuple[float, int]:
    return expected.begins_in_s, int(expected.generation.started is None)


def _tokens_begin(expected: Expected) -> tuple[float, int]:
    log = expected.generation
    return expected.begins_in_s, log.prompt_tokens if log.started is None else 0


def _ends(expected: Expected) -> tuple[float, int]:
    return expected.ends_in_s, int(not expected.generation.is_ended)
