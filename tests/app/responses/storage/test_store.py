from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from app.responses.context import Context
from app.responses.response import StoredResponse
from app.responses.schemas.objects import Item
from app.responses.storage.ballast import BALLAST_BYTES
from app.responses.storage.retention_clock import RetentionClock
from app.responses.storage.store import _MAX_ROWS_PER_SWEEP, ResponseStore, encode
from app.responses.storage.store_file import StoreFile
from app.responses.storage.store_status import StoreProblem, StoreTooNew, StoreUnavailable
from tests.support import ManualClock

DAY_S = 24 * 3600.0


def to_item(item_id: str) -> Item:
    return {"id": item_id, "type": "item_reference"}


def make_stored(name: str, *, caller: str = "me", num_chars: int = 10) -> StoredResponse:
    return StoredResponse(
        response_id=f"resp_{name}",
        caller=caller,
        last_snapshot={"id": f"resp_{name}", "output": [], "text": "é" * num_chars},
        context=Context.of((to_item("msg_1"),), (to_item("msg_2"),)),
        num_bytes=0,
    )


@asynccontextmanager
async def opened(
    directory: Path,
    *,
    ttl_s: float = 100.0,
    max_bytes: int = 2**22,
    clock: Callable[[], float] | None = None,
    monotonic: Callable[[], float] | None = None,
    **options: Any,
) -> AsyncIterator[ResponseStore]:
    monotonic = monotonic or ManualClock()
    store = ResponseStore(
        StoreFile(directory, monotonic=monotonic, **options),
        ttl_s=ttl_s,
        max_bytes=max_bytes,
        clock=RetentionClock(wall=clock or ManualClock(1000.0), monotonic=monotonic),
    )
    try:
        await store.open()
        yield store
    finally:
        await store.aclose()


async def put(store: ResponseStore, *responses: StoredResponse) -> None:
    for response in responses:
        await store.put(response, encode(response))


async def found(store: ResponseStore, *names: str, caller: str = "me") -> list[bool]:
    return [await store.find(f"resp_{name}", caller=caller) is not None for name in names]


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


async def test_others_cannot_find_or_delete_it(tmp_path: Path):
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


async def test_old_responses_go(tmp_path: Path):
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


async def test_a_sweep_deletes_more_than_it_does_at_once(tmp_path: Path):
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
    """A file that an earlier version has written has no reading of the clock."""
    async with opened(tmp_path, ttl_s=30 * DAY_S, clock=ManualClock(1.8e9)) as store:
        await put(store, make_stored("a"))
    with closing(sqlite3.connect(tmp_path / "responses.sqlite3")) as other:
        other.execute("DROP TABLE retention_clock")
    wall = ManualClock(1.8e9 + 31 * DAY_S)
    async with opened(tmp_path, ttl_s=30 * DAY_S, clock=wall) as store:
        assert await found(store, "a") == [True]


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
async def test_thousands_of_responses_stay_under_the_cap(tmp_path: Path):
    """Counted as what the files really take: the log beside the file has a limit of its own."""
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
    with pytest.raises(StoreTooNew, match="schema 7"):
        ResponseStore(StoreFile(tmp_path), ttl_s=1, max_bytes=2**20).check_version()
    with pytest.raises(StoreTooNew, match="schema 7"):
        async with opened(tmp_path):
            pass


async def test_the_version_of_a_file_is_looked_at_without_touching_it(tmp_path: Path):
    store = ResponseStore(StoreFile(tmp_path / "new"), ttl_s=1, max_bytes=2**20)
    store.check_version()
    assert not (tmp_path / "new").exists()
    (tmp_path / "responses.sqlite3").write_text("no database " * 20)
    ResponseStore(StoreFile(tmp_path), ttl_s=1, max_bytes=2**20).check_version()


async def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path):
    (tmp_path / "responses.sqlite3").write_text("no database, only a long enough text " * 20)
    with pytest.raises(StoreUnavailable, match="not a database"):
        async with opened(tmp_path):
            pass


async def test_a_row_that_is_damaged_is_told(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        with closing(sqlite3.connect(store._file.path)) as other:
            other.execute("UPDATE responses SET body = substr(body, 9)")
            other.commit()
        with pytest.raises(StoreUnavailable, match="resp_a is damaged"):
            await store.find("resp_a", caller="me")


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="file"):
        async with opened(tmp_path / "file"):
            pass


async def test_a_row_that_cannot_be_written_says_nothing_about_the_store(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        for row in (make_stored("a"), make_stored("b", caller="\ud800")):
            with pytest.raises(StoreUnavailable):
                await put(store, row)
            assert store.problem is None
        assert await found(store, "\ud800", "a") == [False, True]
        assert store.problem is None


# A file that cannot be used any more, and then can.


async def test_a_full_disk_is_told_and_leaves_the_rest_readable(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a"))
        await limit_pages(store, by=0)
        with pytest.raises(StoreUnavailable, match="full"):
            await put(store, make_stored("b", num_chars=100_000))
        assert store.problem is StoreProblem.FULL
        assert await found(store, "a") == [True]
        with pytest.raises(StoreUnavailable, match="disk_full"):
            await store.find("resp_b", caller="me")
        with pytest.raises(StoreUnavailable, match="full"):
            await store.check()
        await limit_pages(store, by=1000)
        await store.check()
        assert store.problem is None
        assert await found(store, "a", "b", "probe") == [True, False, False]
        await put(store, make_stored("b", num_chars=100_000))
    assert [row[0] for row in rows(tmp_path)] == ["resp_a", "resp_b"]


async def test_what_is_deleted_makes_room_on_a_full_disk(tmp_path: Path):
    async with opened(tmp_path) as store:
        await put(store, make_stored("a", num_chars=20_000))
        await limit_pages(store, by=0)
        with pytest.raises(StoreUnavailable, match="full"):
            await put(store, make_stored("b", num_chars=20_000))
        assert await store.delete("resp_a", caller="me")
        await put(store, make_stored("b", num_chars=20_000))
        assert store.problem is None


@dataclass
class Disk:
    free: int


class FullDiskConnection(aiosqlite.Connection):
    """A database on a disk that has no space at all beside the ballast.

    Args:
        directory: has the ballast.
        fails: how many deletions fail, too, where the ballast is gone.
    """

    def __init__(self, directory: Path, fails: int, *args: Any) -> None:
        super().__init__(*args)
        self._ballast = directory / "responses.ballast"
        self._num_failures_left = fails
        self.is_full = False

    def execute(self, sql: str, parameters: Any = None) -> Any:
        if self.is_full and not sql.startswith(("SELECT", "PRAGMA")):
            if not self._ballast.exists():
                self._num_failures_left -= 1
            if self._ballast.exists() or self._num_failures_left >= 0:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
        return super().execute(sql, parameters)


async def test_a_response_is_refused_before_nothing_can_be_deleted_any_more(tmp_path: Path):
    """A row is written twice, and the write-ahead log must have its space."""
    disk = Disk(2**30)
    async with opened(tmp_path, disk_usage=lambda _: disk) as store:
        await put(store, make_stored("a"))
        await pragma(store, "wal_checkpoint(TRUNCATE)")
        body = encode(make_stored("b")).ljust(1_000_000)
        num_bytes = 1_000_000 + 16_384
        disk.free = 2 * num_bytes + 2**20 - 1
        with pytest.raises(StoreUnavailable, match="the disk is full"):
            await store.put(make_stored("b"), body)
        assert store.problem is StoreProblem.FULL
        disk.free += 1
        await store.put(make_stored("b"), body)
        assert store.problem is None
        await store.delete("resp_b", caller="me")
        disk.free = num_bytes + 2**20
        await store.put(make_stored("b"), body)  # in what the deletion has left free


@pytest.mark.parametrize("fails", [0, 1, 2])
async def test_deleting_takes_its_space_from_the_ballast(tmp_path: Path, fails: int):
    """At the first failure more is left behind in the file, at the second it is told."""
    ballast = tmp_path / "responses.ballast"

    def connect(path: str, **options: Any) -> aiosqlite.Connection:
        return FullDiskConnection(tmp_path, fails, lambda: sqlite3.connect(path, **options), 64)

    async with opened(tmp_path, connect=connect) as store:
        await put(store, make_stored("a"))
        connection = store._file._connection
        assert isinstance(connection, FullDiskConnection)
        connection.is_full = True
        with pytest.raises(StoreUnavailable, match="full"):
            await put(store, make_stored("b"))
        assert ballast.stat().st_size == BALLAST_BYTES
        if fails < 2:
            assert await store.delete("resp_a", caller="me")
        else:
            with pytest.raises(StoreUnavailable, match="full"):
                await store.delete("resp_a", caller="me")
        assert ballast.stat().st_size == BALLAST_BYTES
        assert store.problem is StoreProblem.FULL, "that a deletion worked shows no space"
        [[secure_delete]] = await connection.execute_fetchall("PRAGMA secure_delete")
        assert secure_delete == 1


async def test_a_store_that_is_read_only_can_be_read(tmp_path: Path):
    async with opened(tmp_path, retry_interval_s=0) as store:
        await put(store, make_stored("a"))
        await pragma(store, "query_only = ON")
        for change in (put(store, make_stored("b")), store.delete("resp_a", caller="me")):
            with pytest.raises(StoreUnavailable, match="readonly"):
                await change
            assert store.problem is StoreProblem.READ_ONLY
            assert await found(store, "a") == [True]
            with pytest.raises(StoreUnavailable, match="read_only"):
                await store.find("resp_b", caller="me")
            await pragma(store, "query_only = ON")
        await pragma(store, "query_only = OFF")
        await store.check()
        assert store.problem is None


@pytest.mark.parametrize("whole_folder", [False, True])
async def test_a_file_that_is_removed_is_told_until_it_is_back(tmp_path: Path, whole_folder: bool):
    folder = tmp_path / "data"
    moved = folder if whole_folder else folder / "responses.sqlite3"
    async with opened(folder, retry_interval_s=0) as store:
        await put(store, make_stored("a"))
        await pragma(store, "wal_checkpoint(TRUNCATE)")
        for use in (
            lambda: store.find("resp_x", caller="me"),
            lambda: put(store, make_stored("b")),
            lambda: store.delete("resp_a", caller="me"),
            lambda: store.check(),
            lambda: store.sweep(),
        ):
            moved.rename(tmp_path / "moved")
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await use()
                assert store.problem is StoreProblem.REMOVED
            assert not moved.exists(), "nothing is made in its place"
            (tmp_path / "moved").rename(moved)
            await store.check()
            assert store.problem is None
            assert await found(store, "a", "b") == [True, False]


async def test_a_file_that_another_has_taken_the_place_of_is_used_next(tmp_path: Path):
    async with opened(tmp_path / "a") as store, opened(tmp_path / "b") as other:
        await put(store, make_stored("a"))
        await put(other, make_stored("b"))
        await other.aclose()
        await pragma(store, "wal_checkpoint(TRUNCATE)")
        other._file.path.rename(store._file.path)
        with pytest.raises(StoreUnavailable, match="removed"):
            await put(store, make_stored("c"))
        assert await found(store, "a", "b") == [False, True]


async def test_a_damaged_file_is_not_used_until_it_is_whole(tmp_path: Path):
    monotonic = ManualClock()
    async with opened(tmp_path, ttl_s=1000, monotonic=monotonic) as store:
        await put(store, make_stored("a", num_chars=100_000))
        await pragma(store, "wal_checkpoint(TRUNCATE)")
        whole = store._file.path.read_bytes()
        store._file.path.write_bytes(b"damaged " * (len(whole) // 8))
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.check()
            assert store.problem is StoreProblem.DAMAGED
            with pytest.raises(StoreUnavailable):
                await store.find("resp_a", caller="me")
            monotonic.advance(60)
        half = len(whole) // 2
        store._file.path.write_bytes(whole[:half] + b"\0" * (len(whole) - half))
        with pytest.raises(StoreUnavailable):
            await store.check()
        assert store.problem is StoreProblem.DAMAGED
        store._file.path.write_bytes(whole)
        monotonic.advance(60)
        await store.check()
        assert store.problem is None
        assert await found(store, "a") == [True]


async def test_a_folder_that_cannot_be_made_is_tried_again(tmp_path: Path):
    monotonic = ManualClock()
    (tmp_path / "file").write_text("in the way")
    store = ResponseStore(
        StoreFile(tmp_path / "file", monotonic=monotonic), ttl_s=1, max_bytes=2**20
    )
    with pytest.raises(StoreUnavailable):
        await store.open()
    assert store.problem is StoreProblem.CANNOT_OPEN
    (tmp_path / "file").unlink()
    with pytest.raises(StoreUnavailable):
        await store.check()  # too soon
    monotonic.advance(1)
    await store.check()
    await put(store, make_stored("a"))
    assert store.problem is None
    await store.aclose()


class StuckConnection(aiosqlite.Connection):
    """A database on a disk that does not answer until it is released."""

    is_released = threading.Event()

    def stick(self) -> None:
        self._tx.put_nowait((None, self.is_released.wait))


async def test_a_disk_that_does_not_answer_holds_nobody_up(tmp_path: Path):
    StuckConnection.is_released.clear()
    num_opened = 0

    def connect(path: str, **options: Any) -> aiosqlite.Connection:
        nonlocal num_opened
        num_opened += 1
        return StuckConnection(lambda: sqlite3.connect(path, **options), 64)

    async with opened(tmp_path, connect=connect, retry_interval_s=0) as store:
        store._file._timeout_s = 0.05
        stuck = store._file._connection
        assert isinstance(stuck, StuckConnection)
        stuck.stick()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await put(store, make_stored("a"))
            assert store.problem is StoreProblem.NOT_ANSWERING
        assert num_opened == 1, "no thread more waits for the disk"
        StuckConnection.is_released.set()
        assert store._file._abandoned is not None
        await store._file._abandoned
        store._file._timeout_s = 10.0
        await put(store, make_stored("b"))
        assert store.problem is None


async def test_a_store_that_is_not_open_says_so(tmp_path: Path):
    store = ResponseStore(StoreFile(tmp_path), ttl_s=1, max_bytes=2**20)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.find("resp_a", caller="me")
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


async def pragma(store: ResponseStore, text: str) -> None:
    connection = await store._file._open()
    await connection.execute_fetchall(f"PRAGMA {text}")


async def limit_pages(store: ResponseStore, *, by: int) -> None:
    """Let the file grow by so many pages and no more."""
    connection = store._file._connection
    assert connection is not None
    [[num_pages]] = await connection.execute_fetchall("PRAGMA page_count")
    await connection.execute_fetchall(f"PRAGMA max_page_count = {num_pages + by}")
