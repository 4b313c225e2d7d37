"""The store of responses on a real disk."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.responses.storage.store import _MAX_ROWS_PER_SWEEP
from app.responses.storage.store_status import StoreUnavailable
from tests.app.responses.storage.stores import (
    found,
    make_stored,
    opened,
    put,
    rows,
)
from tests.support import ManualClock

DAY_S = 24 * 3600.0


async def test_a_response_comes_back_as_it_was(tmp_path: Path):
    response = make_stored("a")
    async with opened(tmp_path) as store:
        await put(store, response)
        assert await store.find("resp_a", caller="me") == response


async def test_a_response_outlives_the_server(tmp_path: Path):
    async with opened(tmp_path / "new" / "folder") as store:
        await put(store, make_stored("a"))
    async with opened(tmp_path / "new" / "folder") as store:
        assert await store.find("resp_a", caller="me") == make_stored("a")


async def test_other_callers_cannot_find_or_delete_a_response(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        assert await found(store, "a", caller="you") == [False]
        assert not await store.delete("resp_a", caller="you")
        assert await found(store, "a") == [True]


async def test_a_deleted_response_is_gone(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        assert await store.delete("resp_a", caller="me")
        assert not await store.delete("resp_a", caller="me")
        assert await found(store, "a") == [False]


async def test_old_responses_expire(tmp_path: Path):
    monotonic = ManualClock()
    async with opened(tmp_path, ttl_s=10, monotonic=monotonic) as store:
        await put(store, make_stored("a"))
        monotonic.advance(10)
        assert await found(store, "a") == [True]
        monotonic.advance(1)
        assert await found(store, "a") == [False]
        await put(store, make_stored("b"))
        await store.sweep()
    assert [row[0] for row in rows(tmp_path)] == ["resp_b"]


async def test_a_sweep_deletes_more_rows_than_one_transaction_does(tmp_path: Path):
    monotonic = ManualClock()
    async with opened(tmp_path, ttl_s=10, monotonic=monotonic) as store:
        for number in range(_MAX_ROWS_PER_SWEEP + 1):
            await put(store, make_stored(str(number)))
        monotonic.advance(11)
        await store.sweep()
    assert rows(tmp_path) == []


@pytest.mark.parametrize("jump_s", [31 * DAY_S, -31 * DAY_S, 50 * 365 * DAY_S])
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_wall_clock_that_jumps_deletes_nothing(
    tmp_path: Path, jump_s: float, restarts: bool
):
    wall, monotonic = ManualClock(1.8e9), ManualClock()
    options: dict[str, Any] = {"ttl_s": 30 * DAY_S, "clock": wall, "monotonic": monotonic}
    async with opened(tmp_path, **options) as store:
        await put(store, make_stored("a"))
        wall.advance(jump_s)
        if not restarts:
            await store.sweep()
            assert await found(store, "a") == [True]
    async with opened(tmp_path, **options) as store:
        await store.sweep()
        assert await found(store, "a") == [True]
        monotonic.advance(30 * DAY_S + 1)  # while the server runs, time counts in full
        assert await found(store, "a") == [False]


async def test_a_wrong_wall_clock_at_the_first_start_deletes_nothing(tmp_path: Path):
    """A file of an earlier version has no clock reading."""
    async with opened(tmp_path, ttl_s=30 * DAY_S, clock=ManualClock(1.8e9)) as store:
        await put(store, make_stored("a"))
    with closing(sqlite3.connect(tmp_path / "responses.sqlite3")) as other:
        other.execute("DROP TABLE retention_clock")
    wall = ManualClock(1.8e9 + 31 * DAY_S)
    async with opened(tmp_path, ttl_s=30 * DAY_S, clock=wall) as store:
        assert await found(store, "a") == [True]


async def test_the_oldest_responses_are_evicted(tmp_path: Path):
    async with opened(tmp_path, max_bytes=2**20) as store:
        for number in range(200):
            await put(store, make_stored(str(number), num_chars=3000))
    left = [row[0] for row in rows(tmp_path)]
    assert left == [f"resp_{number}" for number in range(200 - len(left), 200)]
    assert 20 < len(left) < 60
    assert (tmp_path / "responses.sqlite3").stat().st_size <= 2**20


@pytest.mark.pain(16)
@pytest.mark.slow
async def test_thousands_of_responses_stay_under_the_cap(tmp_path: Path):
    """Measures all files: the write-ahead log has a limit of its own."""
    async with opened(tmp_path, max_bytes=2**20) as store:
        for number in range(2_000):
            await put(store, make_stored(str(number), num_chars=number % 300))
            if number % 100 == 0:
                file, log = (tmp_path / f"responses.sqlite3{end}" for end in ("", "-wal"))
                assert file.stat().st_size <= 2**20
                assert log.stat().st_size <= 2**23
        assert await found(store, "0", "1999") == [False, True]
        assert await found(store, "1999", caller="you") == [False]
    left = [row[0] for row in rows(tmp_path)]
    assert left == [f"resp_{number}" for number in range(2_000 - len(left), 2_000)]


async def test_a_response_larger_than_the_store_is_refused(tmp_path: Path):
    async with opened(tmp_path, max_bytes=2**20) as store:
        await put(store, make_stored("a"))
        with pytest.raises(StoreUnavailable, match="exceeds the store"):
            await put(store, make_stored("b", num_chars=2**20))
        assert await found(store, "a", "b") == [True, False]


async def test_two_servers_share_a_file(tmp_path: Path):
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        await put(one, make_stored("a"))
        await put(other, make_stored("b"))
        assert await found(one, "a", "b") == [True, True]
        assert await found(other, "a", "b") == [True, True]


async def test_a_damaged_row_is_reported(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        with closing(sqlite3.connect(store._file.path)) as other:
            other.execute("UPDATE responses SET body = substr(body, 9)")
            other.commit()
        with pytest.raises(StoreUnavailable, match="row of resp_a is damaged"):
            await store.find("resp_a", caller="me")


async def test_a_row_that_cannot_be_written_is_not_a_problem_of_the_store(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        for row in (make_stored("a"), make_stored("b", caller="\ud800")):
            with pytest.raises(StoreUnavailable):
                await put(store, row)
            assert store.problem is None
        assert await found(store, "\ud800", "a") == [False, True]
        assert store.problem is None
