"""Limits, eviction, and whether `retry_after_s` of a refusal is right."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.admission.capacity import Capacity, Evictable
from streaming.backend import Batch, FailedRow, SampledToken
from streaming.backends.scripted import ScriptedRunner, ScriptInput
from streaming.config import EngineConfig
from streaming.engine.engine import Engine
from streaming.errors import CallerLimitReached, CapacityError, InvalidRequest, Overloaded
from streaming.log.generation import Failed, Finished, FinishReason, Generation
from streaming.scheduling.wait_estimator import Forecast
from tests.support import ManualClock, make_generation, make_sequence, property_test


class Desk:
    """Stands in for the engine: holds logs, and ends evicted ones unless `is_slow`."""

    def __init__(self, *, max_running: int = 4, is_slow: bool = False, **limits: int) -> None:
        self._is_slow = is_slow
        self.logs: list[Generation] = []
        self.tokenizing: list[Evictable] = []
        self.evicted: list[Generation] = []
        self.forecast: Forecast | None = None
        self.capacity = Capacity(
            EngineConfig(**limits),
            max_running=max_running,
            open_logs=lambda: [log for log in self.logs if not log.is_ended],
            num_tokenizing=self._num_tokenizing,
            evictable_tokenizing=lambda: self.tokenizing,
            evict_waiting=self._evict_waiting,
            forecast=lambda: self.forecast,
        )

    def submit(self, caller: str, num_requests: int = 1, *, num_tokens: int = 0) -> None:
        prompts = [[0] * num_tokens] * num_requests if num_tokens else []
        self.capacity.admit(caller, num_requests=num_requests, prompts=prompts)
        for _ in range(num_requests):
            self.logs.append(
                make_generation(str(len(self.logs)), caller=caller, prompt_tokens=num_tokens)
            )

    def start(self, caller: str, num: int = 1) -> None:
        for log in self.waiting(caller)[:num]:
            log.start(cached_tokens=0, at=0.0)

    def tokenize(self, caller: str, num_requests: int) -> None:
        self.capacity.admit(caller, num_requests=num_requests)
        job = Evictable(caller, num_requests, 0, lambda _: self.tokenizing.remove(job))
        self.tokenizing.append(job)

    def waiting(self, caller: str | None = None) -> list[Generation]:
        return [
            log
            for log in self.logs
            if log.started is None and not log.is_ended and caller in (None, log.caller)
        ]

    def num_open(self, caller: str | None = None) -> int:
        return sum(not log.is_ended and caller in (None, log.caller) for log in self.logs)

    def _num_tokenizing(self) -> Counter[str]:
        counts = Counter[str]()
        for job in self.tokenizing:
            counts[job.caller] += job.num_requests
        return counts

    def _evict_waiting(self, log: Generation, error: Overloaded) -> None:
        self.evicted.append(log)
        if not self._is_slow:
            log.end(Failed(error, at=0.0))


def test_one_caller_may_use_everything_without_a_limit_per_caller():
    desk = Desk(max_waiting_requests=3)
    desk.submit("a", 3)
    with pytest.raises(Overloaded) as caught:
        desk.submit("a")
    assert (
        str(caught.value)
        == "The server is busy: 3 requests are waiting (limit: 3); try again later."
    )
    assert caught.value.retry_after_s == 1.0, "nothing has been measured"


def test_a_refusal_names_the_callers_own_limit():
    desk = Desk(
        max_waiting_requests=8,
        max_waiting_requests_per_caller=3,
        max_generations=20,
        max_generations_per_caller=5,
        max_waiting_tokens=100,
        max_waiting_tokens_per_caller=50,
    )
    desk.submit("a", 3)
    refusals = []
    for _ in range(2):
        with pytest.raises(CallerLimitReached) as caught:
            desk.submit("a")
        refusals.append(str(caught.value))
        desk.start("a", 3)
        if len(refusals) == 1:
            desk.submit("a", 2)
    assert refusals == [
        "You have 3 waiting requests (limit for one caller: 3); try again later.",
        "You have 5 open generations (limit for one caller: 5); try again later.",
    ]
    desk.submit("b", num_tokens=60)  # a single prompt may be longer
    with pytest.raises(
        CallerLimitReached, match=r"60 waiting prompt tokens \(limit for one caller: 50\)"
    ):
        desk.submit("b", num_tokens=1)
    desk.submit("c", num_tokens=1)
    assert desk.evicted == []


def test_running_and_waiting_generations_are_limited_together():
    """Preempted generations count as well: they have started, and wait again."""
    desk = Desk(max_running=2, max_waiting_requests=3)
    desk.submit("a", 3)
    desk.start("a", 3)
    desk.submit("a", 2)
    with pytest.raises(Overloaded) as caught:
        desk.submit("a")
    assert (
        str(caught.value)
        == "The server is busy: 5 generations are open (limit: 5); try again later."
    )


def test_a_new_caller_evicts_the_newest_request_of_the_caller_that_has_most():
    desk = Desk(max_waiting_requests=5)
    desk.submit("some", 2)
    desk.submit("most", 3)
    desk.submit("new")
    [evicted] = desk.evicted
    assert (evicted.caller, evicted.generation_id) == ("most", "4")
    assert isinstance(evicted.outcome, Failed)
    assert isinstance(evicted.outcome.error, Overloaded)
    assert "displaced by a caller with fewer" in str(evicted.outcome.error)
    assert evicted.outcome.error.retry_after_s == 1.0
    assert len(desk.waiting()) == 5
    desk.submit("newer")
    assert [log.generation_id for log in desk.evicted] == ["4", "1"]
    with pytest.raises(Overloaded):
        desk.submit("newest", 2)
    with pytest.raises(Overloaded):
        desk.submit("most")


def test_running_generations_count_for_which_caller_has_most():
    desk = Desk(max_waiting_requests=1, max_running=8)
    desk.submit("busy")
    desk.start("busy")
    desk.submit("busy")
    desk.submit("new")
    assert [log.caller for log in desk.evicted] == ["busy"]
    with pytest.raises(Overloaded):
        desk.submit("newer")


def test_nothing_is_evicted_for_a_request_that_is_refused():
    desk = Desk(max_waiting_requests=4, max_waiting_tokens=100)
    desk.submit("many", 2, num_tokens=10)
    desk.submit("one", num_tokens=75)
    with pytest.raises(Overloaded) as caught:
        desk.submit("new", num_tokens=60)
    assert (
        str(caught.value)
        == "The server is busy: 95 prompt tokens are waiting (limit: 100); try again later."
    )
    assert desk.evicted == []


def test_a_long_prompt_is_evicted_for_a_caller_that_has_none():
    desk = Desk(max_waiting_requests=100, max_waiting_tokens=100)
    for _ in range(3):
        desk.submit("long", num_tokens=30)
    desk.submit("many", 5)
    desk.submit("new", num_tokens=35)
    assert [(log.caller, log.generation_id) for log in desk.evicted] == [("long", "2")]


def test_untokenized_requests_are_evicted_first():
    desk = Desk(max_waiting_requests=6)
    desk.submit("a", 2)
    desk.tokenize("a", 2)
    desk.tokenize("a", 2)
    desk.submit("b")
    assert [job.num_requests for job in desk.tokenizing] == [2]
    assert desk.evicted == []


def test_an_evicted_request_that_has_started_counts_again():
    desk = Desk(max_waiting_requests=2, is_slow=True)
    desk.submit("a", 2)
    desk.submit("b")
    [late] = desk.evicted
    desk.start("a", 2)
    assert late.started is not None
    desk.submit("a")
    with pytest.raises(Overloaded):
        desk.submit("a")
    late.end(Finished(FinishReason.STOP, at=0.0))
    desk.capacity.check("b", num_requests=0)
    assert desk.capacity._evicted == set()


def test_prompts_that_are_too_long_together_are_invalid():
    desk = Desk(max_waiting_tokens=10, max_waiting_tokens_per_caller=5)
    with pytest.raises(InvalidRequest, match=r"must have at most 5 tokens in total \(got 6\)"):
        desk.capacity.admit("a", num_requests=2, prompts=[[1] * 3, [2] * 3])


@property_test
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "start", "end"]), st.sampled_from("abcd"), st.integers(1, 4)
        ),
        max_size=60,
    ),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_no_limit_is_exceeded_and_a_new_caller_is_refused_only_if_no_caller_has_two(
    script: list[tuple[str, str, int]], max_waiting: int, max_running: int
):
    desk = Desk(max_waiting_requests=max_waiting, max_running=max_running)
    for action, caller, num in script:
        if action == "submit":
            num_before, had_none = len(desk.evicted), not desk.num_open(caller)
            # Only callers with waiting requests can lose any.
            held = [
                desk.num_open(other) for other in "abcd" if other != caller and desk.waiting(other)
            ]
            try:
                desk.submit(caller, num)
            except Overloaded:
                assert len(desk.evicted) == num_before
                if had_none and num == 1:
                    assert max(held, default=0) <= 1
            else:
                assert all(log.caller != caller for log in desk.evicted[num_before:])
        elif action == "start":
            num_free = max_running - sum(
                log.started is not None and not log.is_ended for log in desk.logs
            )
            desk.start(caller, min(num, num_free))
        else:
            for log in [
                log
                for log in desk.logs
                if log.caller == caller and log.started and not log.is_ended
            ][:num]:
                log.end(Finished(FinishReason.STOP, at=0.0))
        assert len(desk.waiting()) <= max_waiting
        assert desk.num_open() <= max_waiting + max_running


# Retry times.

STEP_S = 0.5


class TimedRunner(ScriptedRunner):
    """Generates the same token without end; each step takes `STEP_S`."""

    def __init__(self, clock: ManualClock, *, max_num_seqs: int) -> None:
        super().__init__(self._say, max_num_seqs=max_num_seqs)
        self._clock = clock

    def _say(self, _: ScriptInput) -> Iterable[int]:
        return itertools.repeat(ord("a"))

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        self._clock.advance(STEP_S)
        return super().run(batch)


@property_test
@given(
    lengths=st.lists(st.integers(6, 30), min_size=1, max_size=12),
    num_steps_before=st.integers(1, 3),
    max_num_seqs=st.integers(1, 4),
    limits=st.fixed_dictionaries(
        {"max_waiting_requests": st.integers(1, 4)},
        optional={
            "max_waiting_requests_per_caller": st.integers(1, 4),
            "max_waiting_tokens": st.integers(3, 12),
            "max_waiting_tokens_per_caller": st.integers(3, 12),
            "max_generations": st.integers(1, 6),
            "max_generations_per_caller": st.integers(1, 6),
        },
    ),
)
def test_a_retry_after_the_given_time_is_admitted(
    lengths: list[int], num_steps_before: int, max_num_seqs: int, limits: dict[str, int]
):
    """With a manual clock, steps of equal time, and answers of maximum length."""
    clock = ManualClock()
    engine = Engine(TimedRunner(clock, max_num_seqs=max_num_seqs), clock=clock)
    logs: list[Generation] = []
    capacity = Capacity(
        EngineConfig(**limits),
        max_running=max_num_seqs,
        open_logs=lambda: [log for log in logs if not log.is_ended],
        num_tokenizing=Counter,
        evictable_tokenizing=list,
        evict_waiting=lambda *_: pytest.fail("there is one caller"),
        forecast=lambda: engine.forecast,
        clock=clock,
    )

    def submit(max_tokens: int) -> None:
        sequence = make_sequence(f"gen_{len(logs)}", prompt="ask", max_tokens=max_tokens)
        prompt = [0] * sequence.num_prompt_tokens
        capacity.admit("anyone", num_requests=1, prompts=[prompt])
        logs.append(sequence.generation)
        engine.add(sequence)

    def fill() -> CapacityError:
        for length in lengths * 10:
            try:
                submit(length)
            except CapacityError as error:
                return error
        raise AssertionError("there are more than may wait")

    submit(lengths[0])
    for _ in range(num_steps_before):
        engine.step()
    fill()
    engine.step()  # now the forecast has all but the requests that come in place of started ones
    error = fill()
    assert error.retry_after_s is not None
    come_again_at = clock() + error.retry_after_s
    while clock() <= come_again_at and engine.has_work:  # a step is always in progress
        engine.step()
    submit(1)
