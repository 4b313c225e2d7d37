"""Fair shares between callers, and first come, first served within one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.scheduling.fair_queue import MAX_PASSED, FairQueue
from streaming.sequence import Sequence
from tests.support import make_sequence, property_test


def add(queue: FairQueue, caller: str, *names: str, prompt: str = "ask") -> list[Sequence]:
    sequences = [make_sequence(name, caller=caller, prompt=prompt) for name in names]
    for sequence in sequences:
        queue.add(sequence)
    return sequences


def order(queue: Iterable[Sequence]) -> list[str]:
    return [sequence.generation_id for sequence in queue]


def serve(queue: FairQueue, num_tokens: int = 10) -> Sequence:
    """Run the next sequence to its end."""
    sequence = next(iter(queue))
    queue.start(sequence)
    queue.charge(sequence, num_tokens=num_tokens)
    queue.finish(sequence)
    return sequence


def test_an_empty_queue():
    queue = FairQueue()
    assert (len(queue), order(queue)) == (0, [])
    queue.check_integrity([])


def test_first_come_first_served_within_a_caller():
    queue = FairQueue()
    add(queue, "alice", *"abcd")
    assert order(queue) == ["a", "b", "c", "d"]
    assert len(queue) == 4


def test_a_hundred_requests_of_one_do_not_starve_one_of_another():
    queue = FairQueue()
    add(queue, "many", *(f"m{n}" for n in range(100)))
    for _ in range(5):
        serve(queue)
    (one,) = add(queue, "one", "o")
    assert order(queue).index("o") <= 1
    served = [serve(queue) for _ in range(2)]
    assert one in served
    assert len(queue) == 94


def test_callers_alternate_by_tokens_not_by_requests():
    queue = FairQueue()
    add(queue, "long", "L1", "L2", "L3", prompt="x" * 30)
    add(queue, "short", "s1", "s2", "s3", "s4", "s5", prompt="x" * 10)
    assert order(queue) == ["L1", "s1", "s2", "s3", "L2", "s4", "s5", "L3"]


def test_a_caller_that_was_served_more_is_served_later():
    queue = FairQueue()
    a = add(queue, "alice", "a1", "a2", prompt="x" * 10)
    add(queue, "bob", "b1", prompt="x" * 10)
    queue.remove(a[0])
    queue.charge(a[0], num_tokens=25)
    assert order(queue) == ["b1", "a2"]
    queue.check_integrity([a[0]])


def test_an_idle_caller_comes_back_with_a_lifted_counter():
    """It has no credit for the time it was away, and no debt from long ago."""
    queue = FairQueue()
    (a,) = add(queue, "alice", "a")
    add(queue, "bob", "b1", "b2", "b3")
    queue.remove(a)
    queue.finish(a)
    for _ in range(2):
        serve(queue, num_tokens=1000)
    add(queue, "alice", "a1", "a2", "a3", prompt="x" * 10)
    assert order(queue) == ["b3", "a1", "a2", "a3"]
    serve(queue, num_tokens=1000)
    add(queue, "bob", "b4")
    assert order(queue) == ["a1", "a2", "a3", "b4"], "it was served more than the waiting caller"
    serve(queue, num_tokens=2000)
    assert order(queue) == ["b4", "a2", "a3"], "the debt ends"
    queue.check_integrity([])


def test_an_idle_counter_is_dropped_once_all_waiting_callers_have_caught_up():
    queue = FairQueue()
    add(queue, "bob", "b1")
    add(queue, "alice", "a1", "a2", "a3")
    serve(queue, num_tokens=100)
    assert queue._idle_counters == {("bob", 0): 100}
    serve(queue, num_tokens=200)
    add(queue, "carol", "c1")
    assert queue._idle_counters == {}
    add(queue, "bob", "b2")
    assert queue.sort_key(add(queue, "bob", "b3")[0]) == (0, 200)


def run(queue: FairQueue, caller: str, *, num_tokens: int, priority: int = 0) -> Sequence:
    """Start a new sequence, and charge it with `num_tokens`."""
    sequence = make_sequence(f"{caller} runs", caller=caller, priority=priority)
    queue.add(sequence)
    queue.remove(sequence)
    queue.charge(sequence, num_tokens=num_tokens)
    return sequence


def test_a_caller_that_only_runs_does_not_lower_the_lift():
    queue = FairQueue()
    run(queue, "slow", num_tokens=10)
    run(queue, "busy", num_tokens=1000)
    add(queue, "many", "m1", "m2", "m3")
    add(queue, "busy", "one")
    assert order(queue).index("one") <= 1


@pytest.mark.parametrize("loses_place", [False, True])
def test_a_caller_that_only_ran_is_lifted_when_it_waits(loses_place: bool):
    queue = FairQueue()
    slow = run(queue, "slow", num_tokens=10)
    run(queue, "busy", num_tokens=1000)
    add(queue, "busy", "one")
    if loses_place:
        queue.requeue(slow)
    add(queue, "slow", "s1", "s2", "s3")
    assert order(queue).index("one") <= 1


def test_a_flow_of_new_callers_does_not_overtake_a_waiting_one():
    """Each of them is lifted to the counter of the waiting one, and dropped when it ends."""
    queue = FairQueue()
    run(queue, "busy", num_tokens=100)
    add(queue, "busy", "b1", "b2", "b3")
    served = []
    for n in range(8):
        add(queue, f"new {n % 2}", f"n{n}")
        served.append(serve(queue).caller)
    assert served.count("busy") == 3


def test_each_priority_has_its_own_counters():
    """A starved lower priority does not lower the lift of a higher one."""
    queue = FairQueue()
    run(queue, "busy", num_tokens=1000, priority=1)
    for caller in ("low", "other"):
        queue.add(make_sequence(f"{caller} low", caller=caller, priority=-1))
    for name in ("m1", "m2", "m3"):
        queue.add(make_sequence(name, caller="low", priority=1))
    queue.add(make_sequence("one", caller="busy", priority=1))
    assert order(queue).index("one") <= 1
    assert order(queue)[-2:] == ["low low", "other low"]


def test_a_detached_caller_does_not_lower_the_lift():
    queue = FairQueue()
    (gone,) = add(queue, "gone", "g")
    queue.set_detached(gone, is_detached=True)
    run(queue, "busy", num_tokens=1000)
    add(queue, "many", "m1", "m2", "m3")
    add(queue, "busy", "one")
    assert order(queue).index("one") <= 1


def test_a_caller_that_attaches_again_is_lifted():
    queue = FairQueue()
    sequences = add(queue, "gone", "g1", "g2", "g3")
    for sequence in sequences:
        queue.set_detached(sequence, is_detached=True)
    run(queue, "busy", num_tokens=1000)
    add(queue, "busy", "one")
    for sequence in sequences:
        queue.set_detached(sequence, is_detached=False)
    assert order(queue) == ["g1", "one", "g2", "g3"]


def test_a_higher_priority_goes_before_all_shares():
    queue = FairQueue()
    add(queue, "alice", "a1", "a2")
    urgent = make_sequence("urgent", caller="alice", priority=1)
    later = make_sequence("later", caller="bob", priority=-1)
    for sequence in (later, urgent):
        queue.add(sequence)
    queue.charge(urgent, num_tokens=1000)
    assert order(queue) == ["urgent", "a1", "a2", "later"]


def test_an_older_low_priority_does_not_delay_its_callers_high_priority():
    """Low-priority tokens, served later, do not count before high-priority ones."""
    queue = FairQueue()
    queue.add(make_sequence("a low", caller="alice", prompt="x" * 99))
    queue.add(make_sequence("a high", caller="alice", priority=1))
    add(queue, "bob", "b low")
    queue.add(make_sequence("b high", caller="bob", priority=1))
    queue.add(make_sequence("b high 2", caller="bob", priority=1))
    assert order(queue)[:3] == ["a high", "b high", "b high 2"]


def test_a_low_priority_is_passed_over_a_limited_number_of_times():
    queue = FairQueue()
    for priority in (0, -5):
        queue.add(make_sequence(f"low {priority}", caller="low", priority=priority))
    served = []
    for n in range(3 * MAX_PASSED):
        queue.add(make_sequence(f"high {n}", caller="high", priority=3))
        expected = order(queue)[0]
        served.append(serve(queue).generation_id)
        assert served[-1] == expected
    places = [served.index(name) for name in ("low 0", "low -5")]
    assert places == [MAX_PASSED, MAX_PASSED + 1]
    assert [name for name in served if name.startswith("low")] == ["low 0", "low -5"]


def test_the_order_includes_the_turn_of_a_low_priority():
    queue = FairQueue()
    add(queue, "low", "low 1", "low 2")
    for n in range(MAX_PASSED + 5):
        queue.add(make_sequence(f"high {n}", caller="high", priority=1))
    told = order(queue)
    assert told.index("low 1") == MAX_PASSED
    assert [serve(queue).generation_id for _ in range(len(told))] == told


def test_a_sequence_requeued_behind_another_goes_after_it():
    queue = FairQueue()
    (a,) = add(queue, "alice", "a")
    queue.start(a)
    (b,) = add(queue, "bob", "b")
    queue.requeue(a, behind=b)
    assert order(queue) == ["b", "a"]


def test_a_detached_sequence_goes_last_until_it_is_attached_again():
    queue = FairQueue()
    a1, a2, _ = add(queue, "alice", "a1", "a2", "a3")
    add(queue, "bob", "b1")
    (urgent,) = [make_sequence("urgent", caller="alice", priority=9)]
    queue.add(urgent)
    for sequence in (a1, urgent):
        queue.set_detached(sequence, is_detached=True)
    queue.check_integrity([])
    assert order(queue) == ["a2", "b1", "a3", "urgent", "a1"]
    queue.set_detached(a1, is_detached=False)
    assert order(queue)[0] == "a1", "it has kept its position"
    assert a2.is_detached is False


def test_a_requeued_sequence_goes_before_the_others_of_its_caller():
    queue = FairQueue()
    a1, a2, _ = add(queue, "alice", "a1", "a2", "a3")
    for sequence in (a1, a2):
        queue.remove(sequence)
    queue.check_integrity([a1, a2])
    for sequence in (a2, a1):  # the youngest is preempted first
        queue.requeue(sequence)
    assert order(queue) == ["a1", "a2", "a3"]
    queue.check_integrity([])


def test_a_caller_is_dropped_with_its_last_request():
    """Memory does not grow with the number of callers that have left."""
    queue = FairQueue()
    for number in range(1000):
        add(queue, f"caller {number}", f"r{number}")
        serve(queue)
    assert (queue._callers, queue._idle_counters) == ({}, {})


def test_a_caller_is_kept_while_something_of_it_runs():
    queue = FairQueue()
    (running,) = add(queue, "alice", "a")
    queue.remove(running)
    queue.charge(running, num_tokens=50)
    add(queue, "bob", "b")
    add(queue, "alice", "a2")
    queue.charge(running, num_tokens=1)
    queue.finish(running)
    assert order(queue) == ["b", "a2"], "its tokens still count"


def test_check_integrity_fails_on_an_uncounted_sequence():
    queue = FairQueue()
    (a,) = add(queue, "alice", "a")
    queue.remove(a)
    with pytest.raises(AssertionError):
        queue.check_integrity([])


@property_test
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(1, 30)), max_size=40))
def test_busy_callers_are_served_alike(requests: list[tuple[str, int]]):
    """While two callers wait, neither is ahead by more than one of its requests."""
    queue = FairQueue()
    for number, (caller, size) in enumerate(requests):
        add(queue, caller, f"{caller}{number}", prompt="x" * size)
    served = dict.fromkeys("ABC", 0)
    waiting = {caller: [s for s in queue if s.caller == caller] for caller in "ABC"}
    largest = max((size for _, size in requests), default=0)
    while all(waiting.values()):
        sequence = serve(queue, num_tokens=len(waiting[next(iter(queue)).caller][0].prompt_ids))
        assert waiting[sequence.caller].pop(0) is sequence
        served[sequence.caller] += sequence.num_prompt_tokens
        assert max(served.values()) - min(served.values()) <= largest
        queue.check_integrity([])


@property_test
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ABC"), st.integers(1, 20)), max_size=3),
        min_size=60,
        max_size=60,
    ),
    st.integers(0, 20),
)
def test_no_interleaving_starves_a_caller(
    arrivals: list[list[tuple[str, int]]], num_rounds_before: int
):
    """However callers come and go, each is served at most about one request more than `one`."""
    queue = FairQueue()
    served: Counter[str] = Counter()
    sizes: dict[Sequence, int] = {}
    one: Sequence | None = None
    for number, coming in enumerate(arrivals):
        for caller, size in coming:
            (sequence,) = add(queue, caller, f"{caller}{number}", prompt="x" * size)
            sizes[sequence] = size
        if number == num_rounds_before:
            (one,) = add(queue, "one", "one")
            served.clear()
        if (head := next(iter(queue), None)) is None:
            continue
        if head is one:
            break
        serve(queue, num_tokens=sizes[head])
        served[head.caller] += sizes[head]
        queue.check_integrity([])
        if one is not None:
            assert max(served.values()) <= 2 * 20
