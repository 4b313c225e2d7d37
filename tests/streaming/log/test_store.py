"""Which logs are kept and found: by caller, age, number and size."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.log.generation import Finished, FinishReason, Generation, Tail
from streaming.log.store import LogStore
from tests.support import ManualClock, make_generation, property_test


@dataclass(eq=False)
class Log:
    num_bytes: int = 100
    caller: str = "alice"
    is_ended: bool = False


def make_store(
    *, retention_s: float = 10.0, retention_bytes: int = 10**9, max_ended: int | None = None
) -> tuple[LogStore[Log], ManualClock]:
    clock = ManualClock()
    store = LogStore[Log](
        retention_s=retention_s, retention_bytes=retention_bytes, max_ended=max_ended, clock=clock
    )
    return store, clock


def add_ended(store: LogStore[Log], *names: str, num_bytes: int = 100) -> None:
    for name in names:
        log = Log(num_bytes)
        store.add(name, log)
        log.is_ended = True
        store.finish(name)


def found(store: LogStore[Log], names: str) -> str:
    return "".join(name for name in names if store.find(name, caller="alice") is not None)


def test_an_open_log_has_no_limit_on_age_or_size():
    store, clock = make_store(retention_bytes=0, max_ended=0)
    log = Log()
    store.add("a", log)
    clock.advance(1e6)
    assert store.find("a", caller="alice") is log
    assert store.open_logs == (log,)
    assert (store.num_open, store.num_ended, store.num_ended_bytes) == (1, 0, 0)


def test_an_id_can_be_added_once():
    store, _ = make_store()
    store.add("a", Log())
    with pytest.raises(AssertionError):
        store.add("a", Log())


def test_an_ended_log_is_found_until_it_expires():
    store, clock = make_store(retention_s=10.0)
    log = Log()
    store.add("a", log)
    clock.advance(100.0)
    log.is_ended = True
    store.finish("a")
    clock.advance(10.0)
    assert store.find("a", caller="alice") is log
    clock.advance(0.001)
    assert store.find("a", caller="alice") is None
    assert (store.num_open, store.num_ended, store.num_ended_bytes) == (0, 0, 0)


def test_only_an_ended_log_can_be_finished():
    store, _ = make_store()
    store.add("a", Log())
    with pytest.raises(AssertionError):
        store.finish("a")
    assert (store.num_open, store.num_ended) == (1, 0)


def test_a_log_that_is_finished_twice_is_counted_once():
    store, _ = make_store()
    add_ended(store, "a", num_bytes=7)
    store.finish("a")
    assert (store.num_open, store.num_ended, store.num_ended_bytes) == (0, 1, 7)


def test_a_log_that_was_never_added_is_not_kept():
    store, _ = make_store()
    store.finish("a")
    assert (store.num_ended, store.num_ended_bytes) == (0, 0)


def test_unknown_expired_and_foreign_logs_get_the_same_answer():
    store, clock = make_store(retention_s=10.0)
    add_ended(store, "expired")
    clock.advance(8.0)
    add_ended(store, "ended")
    store.add("open", Log())
    clock.advance(8.0)
    assert [store.find(name, caller="alice") for name in ("never", "expired")] == [None, None]
    assert [store.find(name, caller="bob") for name in ("ended", "open")] == [None, None]
    assert None not in [store.find(name, caller="alice") for name in ("ended", "open")]


def test_the_oldest_log_is_evicted_first_and_only_as_many_as_necessary():
    store, _ = make_store(retention_bytes=300)
    add_ended(store, *"abc")
    assert store.num_ended == 3, "at the limit exactly, nothing goes"
    add_ended(store, "d")
    assert found(store, "abcd") == "bcd"
    add_ended(store, "e", num_bytes=101)
    assert found(store, "abcde") == "de"
    assert store.num_ended_bytes == 201


def test_a_log_larger_than_the_limit_is_evicted_with_all_older_ones():
    store, _ = make_store(retention_bytes=300)
    add_ended(store, "a")
    add_ended(store, "b", num_bytes=301)
    assert (store.num_ended, store.num_ended_bytes) == (0, 0)


def test_the_number_of_ended_logs_is_limited():
    store, _ = make_store(max_ended=2)
    add_ended(store, *"ab")
    assert found(store, "ab") == "ab"
    add_ended(store, "c")
    assert found(store, "abc") == "bc"


def test_removing_a_log_subtracts_the_size_that_was_added():
    """The size that a log reports may shrink while it is stored."""
    store, _ = make_store()
    add_ended(store, *"ab")
    log = store.find("a", caller="alice")
    assert log is not None
    log.num_bytes = 1
    store.remove("a")
    assert store.num_ended_bytes == 100


def test_evict_drops_expired_logs():
    store, clock = make_store(retention_s=10.0)
    add_ended(store, "a")
    clock.advance(5.0)
    add_ended(store, "b")
    clock.advance(6.0)
    store.evict()
    assert store.num_ended == 1
    assert found(store, "ab") == "b"


def test_a_removed_log_is_gone_and_frees_its_bytes():
    store, _ = make_store()
    log = Log()
    store.add("open", log)
    add_ended(store, "ended")
    assert store.remove("open")
    assert not store.remove("ended")
    assert not store.remove("ended")
    log.is_ended = True
    store.finish("open")
    assert store.find("open", caller="alice") is None
    assert (store.num_open, store.num_ended, store.num_ended_bytes) == (0, 0, 0)


def test_a_log_that_ended_and_is_not_finished_is_removed_as_an_open_one():
    store, _ = make_store()
    store.add("a", Log(is_ended=True))
    assert store.remove("a")


@pytest.mark.pain(16)
@pytest.mark.slow
def test_ten_thousand_generations_stay_under_the_limit():
    """Both the counted bytes and the allocated memory."""
    retention_bytes = 2**20
    store = LogStore[Generation](retention_s=10.0, retention_bytes=retention_bytes)
    tracemalloc.start()
    try:
        for n in range(10_000):
            generation = make_generation(f"gen_{n}")
            store.add(generation.generation_id, generation)
            generation.append(Tail("x" * (n % 300), at=float(n)))
            generation.end(Finished(FinishReason.STOP, at=float(n)))
            store.finish(generation.generation_id)
            assert store.num_ended_bytes <= retention_bytes
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < store.num_ended < 10_000
    assert taken <= 1.1 * retention_bytes
    oldest_kept = 10_000 - store.num_ended
    for n, is_there in ((oldest_kept - 1, False), (oldest_kept, True), (9999, True)):
        assert (store.find(f"gen_{n}", caller="anyone") is not None) == is_there


@property_test
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4)), max_size=40))
def test_the_byte_count_is_the_sum_of_the_kept_logs(steps: list[tuple[int, int]]):
    store, clock = make_store(retention_s=10.0, retention_bytes=2000, max_ended=12)
    sizes: list[int] = []
    for n, (num_bytes, seconds) in enumerate(steps):
        clock.advance(seconds)
        add_ended(store, str(n), num_bytes=num_bytes)
        sizes.append(num_bytes)
        kept = [at for at in range(n + 1) if store.find(str(at), caller="alice") is not None]
        assert kept == list(range(n + 1 - len(kept), n + 1)), "the oldest go first"
        assert store.num_ended_bytes == sum(sizes[at] for at in kept) <= 2000
        assert store.num_ended == len(kept) <= 12


# Pinned logs.


def test_a_pinned_log_does_not_expire():
    store, clock = make_store(retention_s=10.0)
    with store.pin("b"):
        add_ended(store, *"abc")
        for _ in range(3):
            clock.advance(9.0)
            assert store.find("b", caller="alice") is not None
    assert found(store, "abc") == "b"


def test_the_age_of_a_log_starts_with_the_end_of_its_last_pin():
    store, clock = make_store(retention_s=10.0)
    with store.pin("a"), store.pin("b"):
        add_ended(store, *"ab")
        with store.pin("a"):
            clock.advance(100.0)
    clock.advance(10.0)
    assert found(store, "ab") == "ab"
    clock.advance(0.1)
    assert found(store, "ab") == ""


def test_pinning_an_ended_log_restarts_its_age():
    store, clock = make_store(retention_s=10.0)
    add_ended(store, *"ab")
    clock.advance(9.0)
    with store.pin("a"):
        pass
    clock.advance(2.0)
    assert found(store, "ab") == "a"


def test_a_pinned_log_counts_towards_the_limits():
    store, _ = make_store(retention_bytes=250)
    with store.pin("a"), store.pin("b"):
        add_ended(store, *"abc")
        assert found(store, "abc") == "bc"
        assert store.num_ended_bytes == 200
    assert found(store, "abc") == "bc"


def test_the_log_that_was_pinned_last_is_evicted_last():
    store, _ = make_store(retention_bytes=250)
    add_ended(store, *"ab")
    with store.pin("a"):
        pass
    add_ended(store, "c")
    assert found(store, "abc") == "ac"


def test_pinning_a_removed_log_does_not_restore_it():
    store, _ = make_store()
    with store.pin("a"):
        add_ended(store, "a")
        assert not store.remove("a")
    assert found(store, "a") == ""
    assert (store.num_ended, store.num_ended_bytes) == (0, 0)
    assert not store._num_pins
