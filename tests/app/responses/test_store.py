from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiosqlite
import pytest

from app.responses.context import Context
from app.responses.response import StoredResponse
from app.responses.store import ResponseStore, StoreUnavailable, encode
from tests.support import ManualClock


def make_stored(name: str, *, owner: str = "me", num_chars: int = 10) -> StoredResponse:
    return StoredResponse(
        response_id=f"resp_{name}",
        owner=owner,
        last_snapshot={"id": f"resp_{name}", "output": [], "text": "é" * num_chars},
        context=Context.of(({"id": "msg_1"},), ({"id": "msg_2"},)),
        num_bytes=0,
    )


@asynccontextmanager
async def opened(
    directory: Path,
    *,
    ttl_s: float = 100.0,
    max_bytes: int = 2**22,
    clock: Callable[[], float] | None = None,
) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(
        directory, ttl_s=ttl_s, max_bytes=max_bytes, clock=clock or ManualClock(1000.0)
    )
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def put(store: ResponseStore, *responses: StoredResponse) -> None:
    for response in responses:
        await store.put(response, encode(response))


async def found(store: ResponseStore, *names: str, owner: str = "me") -> list[bool]:
    return [await store.find(f"resp_{name}", owner=owner) is not None for name in names]


async def test_a_response_comes_back_as_it_was(tmp_path: Path):
    response = make_stored("a")
    async with opened(tmp_path) as store:
        await put(store, response)
        assert await store.find("resp_a", owner="me") == response


async def test_a_response_outlives_the_server(tmp_path: Path):
    async with opened(tmp_path / "new" / "folder") as store:
        await put(store, make_stored("a"))
    async with opened(tmp_path / "new" / "folder") as store:
        assert await store.find("resp_a", owner="me") == make_stored("a")


async def test_others_cannot_find_or_delete_it(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        assert await found(store, "a", owner="you") == [False]
        assert not await store.delete("resp_a", owner="you")
        assert await found(store, "a") == [True]


async def test_a_deleted_response_is_gone(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        assert await store.delete("resp_a", owner="me")
        assert not await store.delete("resp_a", owner="me")
        assert await found(store, "a") == [False]


async def test_old_responses_go(tmp_path: Path):
    clock = ManualClock(1000.0)
    async with opened(tmp_path, ttl_s=10, clock=clock) as store:
        await put(store, make_stored("a"))
        clock.advance(10)
        assert await found(store, "a") == [True]
        clock.advance(1)
        assert await found(store, "a") == [False]
        await put(store, make_stored("b"))
    assert [row[0] for row in rows(tmp_path)] == ["resp_b"]


async def test_the_oldest_go_where_there_are_too_many(tmp_path: Path):
    async with opened(tmp_path, max_bytes=2**20) as store:
        for number in range(200):
            await put(store, make_stored(str(number), num_chars=3000))
    left = [row[0] for row in rows(tmp_path)]
    assert left == [f"resp_{number}" for number in range(200 - len(left), 200)]
    assert 20 < len(left) < 60
    assert (tmp_path / "responses.sqlite3").stat().st_size <= 2**20


@pytest.mark.pain(16)
@pytest.mark.slow
async def test_ten_thousand_responses_stay_under_the_cap(tmp_path: Path):
    """Counted as what the files really take: the log beside the file has a limit of its own."""
    async with opened(tmp_path, max_bytes=2**20) as store:
        for number in range(10_000):
            await put(store, make_stored(str(number), num_chars=number % 300))
            if number % 100 == 0:
                file, log = (tmp_path / f"responses.sqlite3{end}" for end in ("", "-wal"))
                assert file.stat().st_size <= 2**20
                assert log.stat().st_size <= 2**23
        assert await found(store, "0", "9999") == [False, True]
        assert await found(store, "9999", owner="you") == [False]
    left = [row[0] for row in rows(tmp_path)]
    assert left == [f"resp_{number}" for number in range(10_000 - len(left), 10_000)]


async def test_a_response_larger_than_all_may_be_is_refused(tmp_path: Path):
    async with opened(tmp_path, max_bytes=2**20) as store:
        await put(store, make_stored("a"))
        with pytest.raises(StoreUnavailable, match="over the limit"):
            await put(store, make_stored("b", num_chars=2**20))
        assert await found(store, "a", "b") == [True, False]


async def test_two_servers_share_a_file(tmp_path: Path):
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        await put(one, make_stored("a"))
        await put(other, make_stored("b"))
        assert await found(one, "a", "b") == [True, True]
        assert await found(other, "a", "b") == [True, True]


async def test_a_newer_file_is_left_alone(tmp_path: Path):
    with sqlite3.connect(tmp_path / "responses.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreUnavailable, match="schema 7"):
        async with opened(tmp_path):
            pass


async def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path):
    (tmp_path / "responses.sqlite3").write_text("no database, only a long enough text " * 20)
    with pytest.raises(StoreUnavailable, match="not a database"):
        async with opened(tmp_path):
            pass


async def test_a_row_that_is_damaged_is_told(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        with closing(sqlite3.connect(store.path)) as other:
            other.execute("UPDATE responses SET body = substr(body, 9)")
            other.commit()
        with pytest.raises(StoreUnavailable, match="resp_a is damaged"):
            await store.find("resp_a", owner="me")


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="file"):
        async with opened(tmp_path / "file"):
            pass


async def test_a_full_disk_is_told_and_leaves_the_rest_readable(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        connection = store._connection
        assert isinstance(connection, aiosqlite.Connection)
        [[num_pages]] = await connection.execute_fetchall("PRAGMA page_count")
        await connection.execute_fetchall(f"PRAGMA max_page_count = {num_pages}")
        with pytest.raises(StoreUnavailable, match="full"):
            await put(store, make_stored("b", num_chars=100_000))
        assert await found(store, "a", "b") == [True, False]


async def test_a_store_that_is_not_open_says_so(tmp_path: Path):
    store = ResponseStore(tmp_path, ttl_s=1, max_bytes=2**20)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.find("resp_a", owner="me")
    await store.aclose()


async def test_only_the_user_may_look_into_the_files(tmp_path: Path):
    async with opened(tmp_path / "data") as store:
        await put(store, make_stored("a"))
        files = await asyncio.to_thread(lambda: [tmp_path / "data", *(tmp_path / "data").iterdir()])
        assert len(files) > 2
        assert [path for path in files if path.stat().st_mode & 0o077] == []


def rows(directory: Path) -> list[tuple[str]]:
    connection = sqlite3.connect(directory / "responses.sqlite3")
    try:
        return connection.execute("SELECT response_id FROM responses ORDER BY number").fetchall()
    finally:
        connection.close()
