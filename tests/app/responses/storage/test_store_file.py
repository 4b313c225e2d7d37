"""The file of the store: its version, its problems, and full disks."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from app.responses.storage.ballast import BALLAST_BYTES
from app.responses.storage.store import ResponseStore, encode
from app.responses.storage.store_file import StoreFile
from app.responses.storage.store_status import StoreProblem, StoreTooNew, StoreUnavailable
from tests.app.responses.storage.stores import (
    found,
    limit_pages,
    make_stored,
    opened,
    pragma,
    put,
    rows,
)
from tests.support import ManualClock


async def test_a_file_of_a_newer_version_is_not_changed(tmp_path: Path):
    with sqlite3.connect(tmp_path / "responses.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreTooNew, match="schema 7"):
        ResponseStore(StoreFile(tmp_path), ttl_s=1, max_bytes=2**20).check_version()
    with pytest.raises(StoreTooNew, match="schema 7"):
        async with opened(tmp_path):
            pass


async def test_check_version_does_not_create_a_file(tmp_path: Path):
    store = ResponseStore(StoreFile(tmp_path / "new"), ttl_s=1, max_bytes=2**20)
    store.check_version()
    assert not (tmp_path / "new").exists()
    (tmp_path / "responses.sqlite3").write_text("no database " * 20)
    ResponseStore(StoreFile(tmp_path), ttl_s=1, max_bytes=2**20).check_version()


async def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path):
    (tmp_path / "responses.sqlite3").write_text("no database, only a long enough text " * 20)
    with pytest.raises(StoreUnavailable, match="not a database"):
        async with opened(tmp_path):
            pass


async def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="file"):
        async with opened(tmp_path / "file"):
            pass


async def test_a_folder_that_cannot_be_created_is_tried_again(tmp_path: Path):
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


async def test_a_store_that_is_not_open_is_refused(tmp_path: Path):
    store = ResponseStore(StoreFile(tmp_path), ttl_s=1, max_bytes=2**20)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.find("resp_a", caller="me")
    await store.aclose()


async def test_only_the_user_can_read_the_files(tmp_path: Path):
    async with opened(tmp_path / "data") as store:
        await put(store, make_stored("a"))
        files = await asyncio.to_thread(lambda: [tmp_path / "data", *(tmp_path / "data").iterdir()])
        assert len(files) > 2
        assert [path for path in files if path.stat().st_mode & 0o077] == []


# Problems of an open file.


async def test_a_read_only_store_can_be_read(tmp_path: Path):
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
async def test_a_removed_file_is_reported_until_it_is_back(tmp_path: Path, whole_folder: bool):
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
            assert not moved.exists(), "no new file is created"
            (tmp_path / "moved").rename(moved)
            await store.check()
            assert store.problem is None
            assert await found(store, "a", "b") == [True, False]


async def test_a_file_that_replaces_the_open_one_is_used_next(tmp_path: Path):
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


class StuckConnection(aiosqlite.Connection):
    """A database on a disk that does not answer until it is released."""

    is_released = threading.Event()

    def stick(self) -> None:
        self._tx.put_nowait((None, self.is_released.wait))


async def test_a_disk_that_does_not_answer_blocks_one_thread_only(tmp_path: Path):
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
        assert num_opened == 1, "no other thread waits for the disk"
        StuckConnection.is_released.set()
        assert store._file._abandoned is not None
        await store._file._abandoned
        store._file._timeout_s = 10.0
        await put(store, make_stored("b"))
        assert store.problem is None


# A full disk.


async def test_a_full_disk_is_reported_and_stored_responses_stay_readable(tmp_path: Path):
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


async def test_a_deletion_makes_room_on_a_full_disk(tmp_path: Path):
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
    """A database on a disk without any space beside the ballast.

    Args:
        directory: has the ballast.
        fails: number of deletions that fail even after the ballast was released.
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


async def test_a_response_is_refused_while_there_is_space_for_deletions(tmp_path: Path):
    """A row is written twice, and the write-ahead log needs space to grow."""
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
        await store.put(make_stored("b"), body)  # into the pages that the deletion freed


@pytest.mark.parametrize("fails", [0, 1, 2])
async def test_a_deletion_takes_its_space_from_the_ballast(tmp_path: Path, fails: int):
    """After one failure the data is not overwritten; a second failure is reported."""
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
        assert store.problem is StoreProblem.FULL, "a deletion does not show that there is space"
        [[secure_delete]] = await connection.execute_fetchall("PRAGMA secure_delete")
        assert secure_delete == 1
