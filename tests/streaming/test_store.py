"""Which logs can still be read: by owner, by age, by size."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import GenerationNotFound
from streaming.generation import Finished, FinishReason, Generation, Tail
from streaming.store import GenerationStore
from tests.support import ManualClock, make_generation, property_test


def make_store(
    clock: ManualClock | None = None, *, retention_s: float = 10.0, retention_bytes: int = 10**9
) -> GenerationStore:
    return GenerationStore(
        retention_s=retention_s, retention_bytes=retention_bytes, clock=clock or ManualClock()
    )


def add_ended(
    store: GenerationStore, generation_id: str, *, text: str = "", at: float = 0.0
) -> Generation:
    generation = make_generation(generation_id)
    store.add(generation)
    generation.append(Tail(text, at))
    generation.end(Finished(FinishReason.STOP, at))
    store.settle(generation)
    return generation


def is_there(store: GenerationStore, generation_id: str, owner: str = "anyone") -> bool:
    try:
        return store.find(generation_id, owner=owner).generation_id == generation_id
    except GenerationNotFound:
        return False


def test_an_open_log_is_found_however_old_and_however_large():
    clock = ManualClock()
    store = make_store(clock, retention_bytes=0)
    generation = make_generation("gen_a")
    store.add(generation)
    generation.append(Tail("x" * 1000, at=0.0))
    clock.advance(1e6)
    assert store.find("gen_a", owner="anyone") is generation
    assert store.open_generations == (generation,)
    assert (store.num_open, store.num_ended, store.num_ended_bytes) == (1, 0, 0)


def test_an_id_is_added_once():
    store = make_store()
    store.add(make_generation("gen_a"))
    with pytest.raises(AssertionError):
        store.add(make_generation("gen_a"))


def test_an_ended_log_is_found_until_its_time_is_over():
    clock = ManualClock()
    store = make_store(clock, retention_s=10.0)
    add_ended(store, "gen_a", at=0.0)
    clock.advance(10.0)
    assert is_there(store, "gen_a")
    clock.advance(0.001)
    assert not is_there(store, "gen_a")
    assert (store.num_ended, store.num_ended_bytes) == (0, 0)


def test_only_an_ended_log_settles():
    store = make_store()
    generation = make_generation()
    store.add(generation)
    with pytest.raises(AssertionError):
        store.settle(generation)


def test_a_log_that_settles_twice_is_counted_once():
    store = make_store()
    generation = add_ended(store, "gen_a", text="hello")
    store.settle(generation)
    assert (store.num_open, store.num_ended) == (0, 1)
    assert store.num_ended_bytes == generation.num_bytes


def test_a_log_that_was_never_added_is_not_kept():
    store = make_store()
    generation = make_generation()
    generation.end(Finished(FinishReason.STOP, at=0.0))
    store.settle(generation)
    assert (store.num_ended, store.num_ended_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("generation_id", "owner"),
    [("gen_never", "alice"), ("gen_expired", "alice"), ("gen_bobs", "alice"), ("gen_open", "bob")],
)
def test_never_was_expired_and_someone_elses_are_one_answer(generation_id: str, owner: str):
    clock = ManualClock()
    store = make_store(clock)
    for name, who in (("gen_expired", "alice"), ("gen_bobs", "bob")):
        generation = make_generation(name, owner=who)
        store.add(generation)
        generation.end(Finished(FinishReason.STOP, at=clock()))
        store.settle(generation)
        clock.advance(8.0)
    store.add(make_generation("gen_open", owner="alice"))
    with pytest.raises(GenerationNotFound) as caught:
        store.find(generation_id, owner=owner)
    expected = GenerationNotFound(generation_id=generation_id)
    assert (str(caught.value), caught.value.args) == (str(expected), expected.args)
    assert is_there(store, "gen_bobs", owner="bob")


def test_the_oldest_goes_first_and_no_more_than_must():
    one = add_ended(make_store(), "gen_x", text="x" * 100).num_bytes
    store = make_store(retention_bytes=3 * one)
    for name in "abc":
        add_ended(store, name, text="x" * 100)
    assert store.num_ended == 3, "at the limit exactly, nothing goes"
    add_ended(store, "d", text="x" * 100)
    assert [name for name in "abcd" if is_there(store, name)] == ["b", "c", "d"]
    add_ended(store, "e", text="x" * 101)
    assert [name for name in "abcde" if is_there(store, name)] == ["d", "e"]


def test_a_log_larger_than_the_cap_is_not_kept_and_takes_the_older_with_it():
    store = make_store(retention_bytes=5000)
    add_ended(store, "gen_a")
    add_ended(store, "gen_b", text="x" * 5000)
    assert (store.num_ended, store.num_ended_bytes) == (0, 0)


def test_evict_alone_drops_what_is_too_old():
    clock = ManualClock()
    store = make_store(clock, retention_s=10.0)
    add_ended(store, "gen_a", at=0.0)
    add_ended(store, "gen_b", at=5.0)
    clock.advance(11.0)
    store.evict()
    assert (store.num_ended, is_there(store, "gen_b")) == (1, True)


def test_ten_thousand_logs_stay_under_the_cap():
    """Pains 16: counted, and also as the memory that they really take."""
    retention_bytes = 2**20
    store = make_store(retention_bytes=retention_bytes)
    tracemalloc.start()
    try:
        for n in range(10_000):
            add_ended(store, f"gen_{n}", text="x" * (n % 300))
            assert store.num_ended_bytes <= retention_bytes
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < store.num_ended < 10_000
    assert taken <= 1.1 * retention_bytes
    assert is_there(store, "gen_9999")
    assert not is_there(store, f"gen_{9999 - store.num_ended}")
    assert is_there(store, f"gen_{10_000 - store.num_ended}")


@property_test
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4)), max_size=40))
def test_the_byte_count_is_that_of_the_logs_that_are_there(steps: list[tuple[int, int]]):
    clock = ManualClock()
    store = make_store(clock, retention_s=10.0, retention_bytes=6000)
    logs = []
    for n, (size, seconds) in enumerate(steps):
        clock.advance(seconds)
        logs.append(add_ended(store, f"gen_{n}", text="x" * size, at=clock()))
        kept = [log for log in logs if is_there(store, log.generation_id)]
        assert kept == logs[len(logs) - len(kept) :], "the oldest go first"
        assert store.num_ended_bytes == sum(log.num_bytes for log in kept) <= 6000
        assert store.num_ended == len(kept)
