"""The SQLite file of the store: opened, looked at, and opened again when it is back.

It may become unusable while the server runs: the disk is full or read-only, the file is damaged or
removed. Each use then raises `StoreUnavailable`, and `problem` says why.
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

from app.responses.storage.ballast import Ballast
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
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order in which they ended
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
_MAX_LOG_BYTES = 2**20
"""Size to which the write-ahead log is cut back; that of the ballast, which it may need to grow."""
_PAGE_BYTES = 4096
_PAGES_AT_ONCE = 64
"""Pages that are moved before what that took is given back."""
_MAX_ROUNDS = 64
"""How often that is done for one deletion: 16 MiB."""
_BUSY_TIMEOUT_S = 5.0
"""How long another process may hold the file."""
_DAMAGED_RETRY_FACTOR = 30
"""A damaged file is read whole before it is used again, so that is tried less often."""

_NUM_UNUSED = "SELECT freelist_count FROM pragma_freelist_count"
_SIZES = (
    "SELECT problem_of_file(FALSE), disk_bytes('free'), disk_bytes(''), disk_bytes('-wal'), "
    "page_count * page_size, freelist_count * page_size FROM "
    "pragma_page_count, pragma_freelist_count, pragma_page_size"
)
Connect = Callable[..., aiosqlite.Connection]


class DiskUsage(Protocol):
    @property
    def free(self) -> int:
        """Bytes that we may take."""


class StoreFile:
    """One connection to the file, shared by all that use it; several processes may have one.

    Args:
        directory: made when it is missing.
        monotonic: monotonic seconds.
        timeout_s: a use that takes longer is given up.
        retry_interval_s: how often a file that cannot be opened is tried again, at most.
        connect: opens a database file, as `aiosqlite.connect` does.
        disk_usage: tells how much of a disk is free, as `shutil.disk_usage` does.
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
        """Done when the thread of a connection that did not answer has come to an end."""
        self._file_id: tuple[int, int] | None = None
        """Device and inode of the file that was opened; None before the first time."""
        self._retry_at = 0.0
        self._is_open = False
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        """Held from making room to taking it."""
        self._problem: StoreProblem | None = None

    @property
    def problem(self) -> StoreProblem | None:
        """What is wrong with the file, as far as is known; None if it can be used."""
        return self._problem

    def check_version(self) -> None:
        """Look at the file before anything else happens. Blocks.

        Raises:
            StoreTooNew: it has been written by a newer version. Anything else that is wrong with it
                shows in `open`.
        """
        try:
            with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as connection:
                [version] = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error:
            return
        self._check_version(version)

    async def open(self) -> None:
        """Open the file, and make it when it is missing.

        Raises:
            StoreTooNew: it has been written by a newer version.
            StoreUnavailable: it cannot be used now. Each use tries to open it again.
        """
        self._is_open = True
        async with self.using():
            pass

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        self._is_open = False
        await self._close()

    async def take_ballast(self) -> None:
        """Take up the space that deletions need on a full disk."""
        await asyncio.to_thread(self._ballast.take)

    @asynccontextmanager
    async def using(
        self, *, writes: bool = False, deletes: bool = False
    ) -> AsyncIterator[aiosqlite.Connection]:
        """Give out the connection, in turn where it `writes` or `deletes`, and note how that went.

        Deleting alone does not show that a disk has space again.

        Raises:
            StoreUnavailable: something failed, or took too long.
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
            raise StoreUnavailable(f"{self.path}: {error}") from error  # the row's fault alone
        except (OSError, aiosqlite.Error, ValueError, StoreUnavailable) as error:
            await self._note_problem(problem_of(error), error)
            if isinstance(error, StoreUnavailable):
                raise
            told = error if str(error) else f"no answer in {self._timeout_s:g} s"
            raise StoreUnavailable(f"{self.path}: {told}", problem_of(error)) from error
        self._note_success(has_written=writes)

    async def _open(self) -> aiosqlite.Connection:
        async with self._opening:
            if self._connection is not None:
                return self._connection
            if not self._is_open:
                raise StoreUnavailable(f"{self.path}: is not open", StoreProblem.CANNOT_OPEN)
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
                # Even reading takes some space, for the shared memory beside the file.
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
            self._problem = None  # as `_prepare` has found out

    def _find_file(self) -> tuple[int, int]:
        """Return the file's device and inode.

        It is made, for this user only, as long as none has been opened; SQLite's other files take
        after it. One that is removed later is not made anew: a disk may have been unmounted, and
        what is written in its place would be lost when it comes back.
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
            # So that space can be given back; before the first table only.
            await connection.execute_fetchall("PRAGMA auto_vacuum = INCREMENTAL")
        await connection.execute_fetchall("PRAGMA journal_mode = WAL")
        await connection.execute_fetchall(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}")
        await connection.execute_fetchall(
            f"PRAGMA wal_autocheckpoint = {_MAX_LOG_BYTES // _PAGE_BYTES}"
        )
        await connection.execute_fetchall("PRAGMA synchronous = NORMAL")
        await connection.execute_fetchall("PRAGMA secure_delete = ON")
        await connection.executescript(_SCHEMA)
        if version != _SCHEMA_VERSION:
            await connection.execute_fetchall(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        # Looks at the file on the connection's own thread, the one that a hung disk may hold up.
        await connection.create_function("problem_of_file", 1, self._look)
        await connection.create_function("disk_bytes", 1, self._disk_bytes)

    def _check_version(self, version: int) -> None:
        if version > _SCHEMA_VERSION:
            raise StoreTooNew(
                f"{self.path}: has the schema {version}, which is newer than this server's "
                f"({_SCHEMA_VERSION}); run the version that wrote it, or choose another data_dir"
            )

    def _look(self, closely: int) -> str:
        """Return what is wrong with the file, as seen from outside; empty if nothing is.

        The file is never opened but by SQLite: closing it would end the locks of this process.

        Args:
            closely: read its beginning from the disk, as the open connection has it in memory.
        """
        try:
            found = self.path.stat()
            if (found.st_dev, found.st_ino) != self._file_id:
                return StoreProblem.REMOVED
            if closely:
                with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as other:
                    other.execute("SELECT 1 FROM responses LIMIT 1").fetchall()
        except (OSError, sqlite3.Error) as error:
            return problem_of(error)
        return ""

    async def check_file(self, connection: aiosqlite.Connection, *, closely: bool = False) -> None:
        """Refuse to go on with a file that is no longer the one at its path."""
        [[problem]] = await connection.execute_fetchall("SELECT problem_of_file(?)", (closely,))
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
            return 0  # what is wrong is told by `_look`

    async def check_disk(self, connection: aiosqlite.Connection, num_bytes: int) -> int:
        """Refuse a row for which there is no space, and return how much of the file is in use.

        It is refused while there is enough to delete others.

        A row is written twice, to the write-ahead log and from there to its place. A log that
        cannot be written back would grow until nothing could be deleted any more.
        """
        [[problem, *sizes]] = await connection.execute_fetchall(_SIZES)
        self._raise_problem(problem)
        num_free_bytes, num_file_bytes, num_log_bytes, num_all_bytes, num_unused_bytes = sizes
        log_growth = max(0, _MAX_LOG_BYTES - num_log_bytes) + num_bytes
        file_growth = max(0, num_all_bytes - num_file_bytes) + max(0, num_bytes - num_unused_bytes)
        if num_free_bytes < log_growth + file_growth:
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
            logger.debug("the store could not be closed: %s", error)

    async def _note_problem(self, problem: StoreProblem, error: Exception) -> None:
        if isinstance(error, StoreUnavailable) and error.problem is None:
            return
        if problem is not self._problem:
            logger.warning("the store of responses cannot be used (%s): %s", problem, error)
        if self._problem is not StoreProblem.DAMAGED:  # which only another file ends
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
        logger.info("the store of responses can be used again: %s", self.path)
        self._problem = None

    # A full disk.

    async def delete(
        self, connection: aiosqlite.Connection, statement: str, *parameters: Any
    ) -> int:
        """Run a statement that takes less space than the ballast, also where the disk is full."""
        try:
            return await change(connection, statement, *parameters)
        except aiosqlite.OperationalError as error:
            if problem_of(error) is not StoreProblem.FULL:
                raise
        await asyncio.to_thread(self._ballast.release)
        try:
            try:
                return await change(connection, statement, *parameters)
            except aiosqlite.OperationalError as error:
                if problem_of(error) is not StoreProblem.FULL:
                    raise
            # To overwrite what is deleted takes as much space again; now it stays in free pages.
            await connection.execute_fetchall("PRAGMA secure_delete = FAST")
            return await change(connection, statement, *parameters)
        finally:
            await self.give_space_back(connection)

    async def give_space_back(self, connection: aiosqlite.Connection) -> None:
        """Make the files smaller, as far as there is the space that even this takes."""
        await asyncio.to_thread(self._ballast.release)
        num_unused, num_unused_before = 0, -1
        try:
            await connection.execute_fetchall("PRAGMA secure_delete = FAST")
            for _ in range(_MAX_ROUNDS):
                if num_unused == num_unused_before:
                    break
                await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
                await connection.execute_fetchall(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
                num_unused_before = num_unused
                [[num_unused]] = await connection.execute_fetchall(_NUM_UNUSED)
            await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        except aiosqlite.OperationalError as error:
            if problem_of(error) is not StoreProblem.FULL:
                raise
        finally:
            await connection.execute_fetchall("PRAGMA secure_delete = ON")
            await asyncio.to_thread(self._ballast.take)


async def change(connection: aiosqlite.Connection, statement: str, *parameters: Any) -> int:
    """Run a statement and return how many rows it changed."""
    async with connection.execute(statement, parameters) as cursor:
        return cursor.rowcount
