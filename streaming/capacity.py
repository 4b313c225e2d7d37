"""Who may come in: how much waits and how much is open, of each caller and in all.

A caller has limits of its own, so that a few cannot hold everything. Where a limit for all is
reached all the same, places are shared: a newcomer takes them back from the caller that has most
open, its newest first, as long as that one has more open than the newcomer's caller then has. So a
caller with one request is refused only where nobody has two.

Lives on the event loop's thread. What waits is counted anew at each look, from the logs themselves,
so no count can drift.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from streaming.config import EngineConfig
from streaming.errors import CallerLimitReached, InvalidRequest, Overloaded
from streaming.generation import Generation
from streaming.wait_estimator import Expected, Outlook

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

    owner: str
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
    """What callers hold at this moment; `places` of a caller are in order, the newest last."""

    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    generations: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[Place]] = field(default_factory=dict)

    def add_place(self, place: Place) -> None:
        self.places.setdefault(place.owner, []).append(place)


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
        self, owner: str, *, num_requests: int, prompts: SequenceOf[SequenceOf[int]] = ()
    ) -> None:
        """Refuse what there is no room for, and change nothing.

        Args:
            prompts: of all the requests, once they are known.

        Raises:
            Overloaded: all places are taken, and no caller has more than its share.
            CallerLimitReached: the caller has as much as one may.
            InvalidRequest: the prompts are too long together, whenever they come.
        """
        self._who_gives_way(owner, num_requests, prompts)

    def admit(
        self, owner: str, *, num_requests: int, prompts: SequenceOf[SequenceOf[int]] = ()
    ) -> None:
        """Make room for requests, which are to be counted from now on, or refuse them.

        Raises:
            as `check` does.
        """
        for place in self._who_gives_way(owner, num_requests, prompts):
            retry_after_s = self._room_in_s(_begins, place.num_requests)
            place.give_way(
                Overloaded(
                    num_waiting=self._requests.in_all,
                    max_waiting=self._requests.in_all,
                    retry_after_s=retry_after_s,
                    gave_way=True,
                )
            )

    def _who_gives_way(
        self, owner: str, num_requests: int, prompts: SequenceOf[SequenceOf[int]]
    ) -> list[Place]:
        """Return what has to make room for the requests; nothing where there is room."""
        num_tokens = sum(map(len, prompts))
        # A prompt of any length may wait alone; to all choices of it, admission gives one list.
        if any(prompt is not prompts[0] for prompt in prompts):
            max_tokens = self._tokens.per_caller
            if num_tokens > max_tokens:
                reason = f"{num_tokens} tokens in all are more than the {max_tokens} that may wait"
                raise InvalidRequest(param="prompt", reason=reason)
        held = self._look()
        self._check_own(held, owner, num_requests, num_tokens)
        return self._make_room(held, owner, num_requests, num_tokens)

    def _check_own(self, held: _Held, owner: str, num_requests: int, num_tokens: int) -> None:
        checks = [
            (self._requests, held.requests, num_requests, "waiting requests", _begins),
            (self._generations, held.generations, num_requests, "open generations", _ends),
        ]
        if held.tokens[owner] and num_tokens:
            unit = "waiting prompt tokens"
            checks.append((self._tokens, held.tokens, num_tokens, unit, _tokens_begin))
        for limit, counts, num_new, unit, events in checks:
            num_over = counts[owner] + num_new - limit.per_caller
            # Of a caller that may have everything, the limit for all tells more.
            if num_over > 0 and limit.per_caller < limit.in_all:
                raise CallerLimitReached(
                    num_held=counts[owner],
                    max_held=limit.per_caller,
                    unit=unit,
                    retry_after_s=self._room_in_s(events, num_over, owner),
                )

    def _make_room(
        self, held: _Held, owner: str, num_requests: int, num_tokens: int
    ) -> list[Place]:
        waiting, tokens = held.requests.total(), held.tokens.total()
        num_open = held.generations.total()
        held_then = held.generations[owner] + num_requests
        giving: list[Place] = []
        while True:
            requests_over = waiting + num_requests - self._requests.in_all
            open_over = num_open + num_requests - self._generations.in_all
            tokens_over = tokens + num_tokens - self._tokens.in_all if tokens and num_tokens else 0
            if max(requests_over, open_over, tokens_over) <= 0:
                return giving
            place = _pop_newest(
                held, held_then, but=owner, needs_tokens=max(requests_over, open_over) <= 0
            )
            if place is None:
                break
            giving.append(place)
            waiting -= place.num_requests
            num_open -= place.num_requests
            tokens -= place.num_tokens
            held.generations[place.owner] -= place.num_requests
            held.tokens[place.owner] -= place.num_tokens
        # Nothing has been changed, so these are the counts without what could have given way.
        held = self._look()
        if requests_over > 0:
            limit, num_held = self._requests, held.requests.total()
            retry_after_s = self._room_in_s(_begins, num_held + num_requests - limit.in_all)
        elif open_over > 0:
            limit, num_held = self._generations, held.generations.total()
            retry_after_s = self._room_in_s(_ends, num_held + num_requests - limit.in_all)
        else:
            limit, num_held = self._tokens, held.tokens.total()
            retry_after_s = self._room_in_s(_tokens_begin, num_held + num_tokens - limit.in_all)
        raise Overloaded(
            num_waiting=num_held,
            max_waiting=limit.in_all,
            retry_after_s=retry_after_s,
            unit=limit.unit,
        )

    def _look(self) -> _Held:
        """Count what is held now."""
        tokenizing = self._tokenizing()
        held = _Held(requests=Counter(tokenizing), generations=Counter(tokenizing))
        still_displaced = set()
        for log in self._open_logs():
            if log.is_ended:
                continue
            is_waiting = log.started is None
            if is_waiting and log.generation_id in self._displaced:
                still_displaced.add(log.generation_id)
                continue
            held.generations[log.owner] += 1
            if is_waiting:
                held.requests[log.owner] += 1
                held.tokens[log.owner] += log.prompt_tokens
                held.add_place(Place(log.owner, 1, log.prompt_tokens, self._displacing(log)))
        for place in self._tokenizing_places():
            held.add_place(place)
        self._displaced = still_displaced
        return held

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
        owner: str | None = None,
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
            if owner in (None, expected.generation.owner)
        ):
            if num_freed:
                in_s = event_in_s
                num_needed -= num_freed
            if num_needed <= 0:
                break
        if num_needed > 0:  # what came after the outlook has its turn after all that it tells of
            in_s = max(expected.ends_in_s for expected in outlook.expected)
        return max(_MIN_RETRY_AFTER_S, outlook.at + in_s - self._clock())


def _pop_newest(held: _Held, held_then: int, *, but: str, needs_tokens: bool) -> Place | None:
    """Take out the newest place of the caller that has most, if that has more than `held_then`.

    Args:
        but: the caller that asks.
        needs_tokens: only a place that holds tokens helps, of the caller that holds most of them.
    """
    most = held.tokens if needs_tokens else held.generations
    for owner in sorted(held.places, key=lambda owner: most[owner], reverse=True):
        if owner == but or held.generations[owner] <= held_then:
            continue
        places = held.places[owner]
        for index in _newest_first(places):
            if places[index].num_tokens or not needs_tokens:
                return places.pop(index)
    return None


def _newest_first(places: list[Place]) -> Iterator[int]:
    return iter(range(len(places) - 1, -1, -1))


def _begins(expected: Expected) -> tuple[float, int]:
    return expected.begins_in_s, int(expected.generation.started is None)


def _tokens_begin(expected: Expected) -> tuple[float, int]:
    log = expected.generation
    return expected.begins_in_s, log.prompt_tokens if log.started is None else 0


def _ends(expected: Expected) -> tuple[float, int]:
    return expected.ends_in_s, int(not expected.generation.is_ended)
