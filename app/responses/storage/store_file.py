"""The SQLite file of the store: opens it, checks it, and reopens it after a problem.

The file may become unusable while the server runs: the disk is full or read-only, the file is
damaged or removed. Each use then raises `StoreUnavailable`, and `problem` says why.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Protocol

import aiosqlite

from app.responses.storage.ballast import Ballast, delete_with_ballast, shrink
from app.responses.storage.store_status import (
    WRITE_PROBLEMS,
    StoreProblem,
    StoreTooNew,
    StoreUnavailable,
    problem_of,
)

logger = logging.getLogger(__name__)

FILE_NAME = "responses.sqlite3"
BALLAST_NAME = "responses.ballast"

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order in which the responses ended
    response_id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    expires_at REAL NOT NULL,  -- by the retention clock
    body TEXT NOT NULL  -- JSON
) STRICT;
CREATE INDEX IF NOT EXISTS responses_by_expiry ON responses (expires_at);
CREATE TABLE IF NOT EXISTS retention_clock (
    number INTEGER PRIMARY KEY CHECK (number = 1),
    counted_s REAL NOT NULL,
    wall_s REAL NOT NULL
) STRICT;
"""
_MAX_WAL_BYTES = 2**20
"""Size to which the write-ahead log is truncated; the ballast has the same size, for its growth."""
_PAGE_BYTES = 4096
_BUSY_TIMEOUT_S = 5.0
"""How long to wait for another process that has locked the file."""
_DAMAGED_RETRY_FACTOR = 30
"""Multiplies the retry interval of a damaged file, which is read whole before it is used again."""

_SIZES = (
    "SELECT problem_of_file(FALSE), disk_bytes('free'), disk_bytes(''), disk_bytes('-wal'), "
    "page_count * page_size, freelist_count * page_size FROM "
    "pragma_page_count, pragma_freelist_count, pragma_page_size"
)
Connect = Callable[..., aiosqlite.Connection]


class DiskUsage(Protocol):
    """What the store reads of `shutil.disk_usage`."""

    @property
    def free(self) -> int:
        """Free bytes on the disk."""


class StoreFile:
    """One connection to the file, shared by all users in this process.

    Several processes may open the file.

    Args:
        directory: created if it is missing.
        monotonic: monotonic seconds.
        timeout_s: limit for one use of the connection.
        retry_interval_s: minimum time between two attempts to open the file.
        connect: opens a database file, like `aiosqlite.connect`.
        disk_usage: returns the free space of a disk, like `shutil.disk_usage`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        timeout_s: float = 10.0,
        retry_interval_s: float = 1.0,
        connect: Connect = aiosqlite.connect,
        disk_usage: Callable[[Path], DiskUsage] = shutil.disk_usage,
    ) -> None:
        self._directory = directory.absolute()
        self.path = self._directory / FILE_NAME
        self._monotonic = monotonic
        self._timeout_s = timeout_s
        self._retry_interval_s = retry_interval_s
        self._connect = connect
        self._disk_usage = disk_usage
        self._ballast = Ballast(self._directory / BALLAST_NAME)
        self._connection: aiosqlite.Connection | None = None
        self._abandoned: asyncio.Future[Any] | None = None
        """Done when the thread of a connection that did not answer has ended."""
        self._file_id: tuple[int, int] | None = None
        """Device and inode of the file that was opened; None before the first opening."""
        self._retry_at = 0.0
        self._is_open = False
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        """Held by one writer, from making room to the insert."""
        self._problem: StoreProblem | None = None

    @property
    def problem(self) -> StoreProblem | None:
        """The last known problem of the file; None if it can be used."""
        return self._problem

    def check_version(self) -> None:
        """Check the file's version without opening the store. Blocks.

        Raises:
            StoreTooNew: a newer version wrote the file. `open` reports all other problems.
        """
        try:
            with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as connection:
                [version] = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error:
            return
        self._check_version(version)

    async def open(self) -> None:
        """Open the file, and create it if it is missing.

        Raises:
            StoreTooNew: a newer version wrote the file.
            StoreUnavailable: the file cannot be used now. Each use tries to open it again.
        """
        self._is_open = True
        async with self.acquire():
            pass

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        self._is_open = False
        await self._close()

    async def take_ballast(self) -> None:
        """Reserve the space that deletions need on a full disk."""
        await asyncio.to_thread(self._ballast.take)

    @asynccontextmanager
    async def acquire(
        self, *, writes: bool = False, deletes: bool = False
    ) -> AsyncIterator[aiosqlite.Connection]:
        """Yield the connection, opening the file if needed, and update `problem` by the result.

        Args:
            writes: wait for other writers; a success also clears a problem of writing.
            deletes: wait for other writers; a success proves no free space, so it does not.

        Raises:
            StoreUnavailable: an operation failed, or took longer than `timeout_s`.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                if writes or deletes:
                    await self._writing.acquire()
                try:
                    yield self._connection or await self._open()
                finally:
                    if writes or deletes:
                        self._writing.release()
        except (aiosqlite.IntegrityError, sqlite3.DataError, UnicodeError) as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error  # a problem of this row only
        except (OSError, aiosqlite.Error, ValueError, StoreUnavailable) as error:
            await self._note_problem(problem_of(error), error)
            if isinstance(error, StoreUnavailable):
                raise
            reason = error if str(error) else f"no answer in {self._timeout_s:g} s"
            raise StoreUnavailable(f"{self.path}: {reason}", problem_of(error)) from error
        self._note_success(has_written=writes)

    async def _open(self) -> aiosqlite.Connection:
        async with self._opening:
            if self._connection is not None:
                return self._connection
            if not self._is_open:
                raise StoreUnavailable(
                    f"{self.path}: the store is not open", StoreProblem.CANNOT_OPEN
                )
            if self._abandoned is not None and not self._abandoned.done():
                raise StoreUnavailable(
                    f"{self.path}: the disk does not answer", StoreProblem.NOT_ANSWERING
                )
            if self._problem is not None and self._monotonic() < self._retry_at:
                raise StoreUnavailable(f"{self.path}: {self._problem}", self._problem)
            is_damaged = self._problem is StoreProblem.DAMAGED
            factor = _DAMAGED_RETRY_FACTOR if is_damaged else 1
            self._retry_at = self._monotonic() + factor * self._retry_interval_s
            try:
                await self._open_file()
            except aiosqlite.OperationalError as error:
                if problem_of(error) is not StoreProblem.FULL:
                    raise
                # Even reading needs some space, for the shared-memory file beside the database.
                await asyncio.to_thread(self._ballast.release)
                await self._open_file()
            assert self._connection is not None
            self._retry_at = 0.0
            return self._connection

    async def _open_file(self) -> None:
        file_id = await asyncio.to_thread(self._find_file)
        connection = self._connection = await self._connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,  # each statement is a transaction
        )
        try:
            await self._prepare(connection)
        except BaseException:
            await self._close()
            raise
        self._file_id = file_id
        if self._problem is StoreProblem.DAMAGED:
            self._problem = None  # `_prepare` has checked the whole file

    def _find_file(self) -> tuple[int, int]:
        """Return the file's device and inode.

        Before the first opening a missing file is created, readable for this user only; SQLite's
        other files inherit its mode. A file that is removed later is not created again: its disk
        may have been unmounted, and new data would disappear when it is mounted again.
        """
        if self._file_id is None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
        found = self.path.stat()
        return found.st_dev, found.st_ino

    async def _prepare(self, connection: aiosqlite.Connection) -> None:
        [[version]] = await connection.execute_fetchall("PRAGMA user_version")
        self._check_version(version)
        if self._problem is StoreProblem.DAMAGED:
            [[verdict]] = await connection.execute_fetchall("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise StoreUnavailable(f"{self.path}: {verdict}", StoreProblem.DAMAGED)
        if version == 0:
            # Allows `shrink`; must be set before the first table is created.
            await connection.execute_fetchall("PRAGMA auto_vacuum = INCREMENTAL")
        await connection.execute_fetchall("PRAGMA journal_mode = WAL")
        await connection.execute_fetchall(f"PRAGMA journal_size_limit = {_MAX_WAL_BYTES}")
        await connection.execute_fetchall(
            f"PRAGMA wal_autocheckpoint = {_MAX_WAL_BYTES // _PAGE_BYTES}"
        )
        await connection.execute_fetchall("PRAGMA synchronous = NORMAL")
        await connection.execute_fetchall("PRAGMA secure_delete = ON")
        await connection.executescript(_SCHEMA)
        if version != _SCHEMA_VERSION:
            await connection.execute_fetchall(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        # They run on the connection's own thread, which a hung disk may block.
        await connection.create_function("problem_of_file", 1, self._inspect)
        await connection.create_function("disk_bytes", 1, self._disk_bytes)

    def _check_version(self, version: int) -> None:
        if version > _SCHEMA_VERSION:
            raise StoreTooNew(
                f"{self.path}: schema {version} is newer than this server's ({_SCHEMA_VERSION}); "
                "run the version that wrote the file, or set another data_dir"
            )

    def _inspect(self, reads_disk: int) -> str:
        """Return the problem of the file at its path; empty if there is none.

        Only SQLite may open the file: closing any other descriptor would drop this process's locks.

        Args:
            reads_disk: read the first pages from the disk; the open connection has them in memory.
        """
        try:
            found = self.path.stat()
            if (found.st_dev, found.st_ino) != self._file_id:
                return StoreProblem.REMOVED
            if reads_disk:
                with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as other:
                    other.execute("SELECT 1 FROM responses LIMIT 1").fetchall()
        except (OSError, sqlite3.Error) as error:
            return problem_of(error)
        return ""

    async def check_file(
        self, connection: aiosqlite.Connection, *, reads_disk: bool = False
    ) -> None:
        """Check that the open file is still the one at its path.

        Args:
            connection: yielded by `acquire`.
            reads_disk: also read the first pages from the disk.

        Raises:
            StoreUnavailable: the file was removed, replaced or damaged.
        """
        [[problem]] = await connection.execute_fetchall("SELECT problem_of_file(?)", (reads_disk,))
        self._raise_problem(problem)

    def _raise_problem(self, problem: str) -> None:
        if problem:
            raise StoreUnavailable(f"{self.path}: the file is {problem}", StoreProblem(problem))

    def _disk_bytes(self, what: str) -> int:
        try:
            if what == "free":
                return self._disk_usage(self._directory).free
            return Path(f"{self.path}{what}").stat().st_size
        except OSError:
            return 0  # `_inspect` reports the problem

    async def check_disk(self, connection: aiosqlite.Connection, num_bytes: int) -> int:
        """Check that the disk has space for a row, and return the used bytes of the file.

        A row is written twice, to the write-ahead log and from there to the file. The check counts
        both, so that enough space stays for deletions: a log that cannot be written back would grow
        until nothing could be deleted.

        Args:
            connection: yielded by `acquire`.
            num_bytes: size of the row.

        Raises:
            StoreUnavailable: there is no space for both, or see `check_file`.
        """
        [[problem, *sizes]] = await connection.execute_fetchall(_SIZES)
        self._raise_problem(problem)
        num_free_bytes, num_file_bytes, num_wal_bytes, num_all_bytes, num_unused_bytes = sizes
        wal_growth = max(0, _MAX_WAL_BYTES - num_wal_bytes) + num_bytes
        file_growth = max(0, num_all_bytes - num_file_bytes) + max(0, num_bytes - num_unused_bytes)
        if num_free_bytes < wal_growth + file_growth:
            raise StoreUnavailable(
                f"{self.path}: the disk is full: {num_free_bytes} bytes are free",
                StoreProblem.FULL,
            )
        used: int = num_all_bytes - num_unused_bytes
        return used

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.close()
        except TimeoutError:
            self._abandoned = connection.stop()
        except (aiosqlite.Error, ValueError) as error:
            logger.debug("cannot close the store of responses: %s", error)

    async def _note_problem(self, problem: StoreProblem, error: Exception) -> None:
        if isinstance(error, StoreUnavailable) and error.problem is None:
            return
        if problem is not self._problem:
            logger.warning("the store of responses is unavailable (%s): %s", problem, error)
        if self._problem is not StoreProblem.DAMAGED:  # only a check of the whole file clears it
            self._problem = problem
        if problem is StoreProblem.NOT_ANSWERING:
            connection, self._connection = self._connection, None
            if connection is not None:
                self._abandoned = connection.stop()
        elif problem not in (StoreProblem.FULL, StoreProblem.BUSY):
            await self._close()

    def _note_success(self, *, has_written: bool) -> None:
        is_over = has_written or self._problem not in WRITE_PROBLEMS
        if self._problem is None or self._problem is StoreProblem.DAMAGED or not is_over:
            return
        logger.info("the store of responses is available again: %s", self.path)
        self._problem = None

    async def delete(
        self, connection: aiosqlite.Connection, statement: str, *parameters: Any
    ) -> int:
        """Execute a statement that needs little space, even if the disk is full.

        Returns the number of rows that it changed.
        """
        return await delete_with_ballast(connection, self._ballast, statement, *parameters)

    async def shrink(self, connection: aiosqlite.Connection) -> None:
        """Return free pages and the write-ahead log to the disk, as far as its space allows."""
        await shrink(connection, self._ballast)
