"""Reserves disk space for deletions, and deletes with it when the disk is full.

SQLite needs space to delete: it appends the changed pages to the write-ahead log first. Without
this reserve, nothing could be deleted from a full disk.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import aiosqlite

from app.responses.storage.store_status import StoreProblem, problem_of

BALLAST_BYTES = 2**20

_PAGES_PER_ROUND = 64
"""Most pages that a round of `shrink` moves before it truncates the write-ahead log again."""
_MAX_ROUNDS = 64
"""Limits one call of `shrink` to 4096 pages, 16 MiB, at most."""
_NUM_UNUSED_PAGES = "SELECT freelist_count FROM pragma_freelist_count"


class Ballast:
    """A file that only takes up space. Its methods access the disk: call them on a worker thread.

    Args:
        path: the file.
        num_bytes: its size.
    """

    def __init__(self, path: Path, *, num_bytes: int = BALLAST_BYTES) -> None:
        self._path = path
        self._num_bytes = num_bytes

    def take(self) -> bool:
        """Create the file if it is missing, and return whether there was enough space."""
        try:
            if self._path.exists() and self._path.stat().st_size >= self._num_bytes:
                return True
            self._path.touch(mode=0o600)
            # Random bytes, because some file systems store zeros without taking space.
            self._path.write_bytes(os.urandom(self._num_bytes))
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Delete the file."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            return  # the deletion that needs the space will fail with a reason


async def execute_change(connection: aiosqlite.Connection, statement: str, *parameters: Any) -> int:
    """Execute a statement and return the number of rows that it changed."""
    async with connection.execute(statement, parameters) as cursor:
        return cursor.rowcount


async def delete_with_ballast(
    connection: aiosqlite.Connection, ballast: Ballast, statement: str, *parameters: Any
) -> int:
    """Execute a statement that needs less space than the ballast, even if the disk is full.

    Returns the number of rows that it changed.
    """
    try:
        return await execute_change(connection, statement, *parameters)
    except aiosqlite.OperationalError as error:
        if problem_of(error) is not StoreProblem.FULL:
            raise
    await asyncio.to_thread(ballast.release)
    try:
        try:
            return await execute_change(connection, statement, *parameters)
        except aiosqlite.OperationalError as error:
            if problem_of(error) is not StoreProblem.FULL:
                raise
        # Overwriting deleted data needs as much space again; leave the data in free pages instead.
        await connection.execute_fetchall("PRAGMA secure_delete = FAST")
        return await execute_change(connection, statement, *parameters)
    finally:
        await shrink(connection, ballast)


async def shrink(connection: aiosqlite.Connection, ballast: Ballast) -> None:
    """Return free pages and the write-ahead log to the disk, as far as its space allows."""
    await asyncio.to_thread(ballast.release)
    num_unused, num_unused_before = 0, -1
    try:
        await connection.execute_fetchall("PRAGMA secure_delete = FAST")
        for _ in range(_MAX_ROUNDS):
            if num_unused == num_unused_before:
                break
            await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
            # As a script: `execute` steps a statement without rows once, which frees one page.
            await connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_ROUND})")
            num_unused_before = num_unused
            [[num_unused]] = await connection.execute_fetchall(_NUM_UNUSED_PAGES)
        await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    except aiosqlite.OperationalError as error:
        if problem_of(error) is not StoreProblem.FULL:
            raise
    finally:
        await connection.execute_fetchall("PRAGMA secure_delete = ON")
        await asyncio.to_thread(ballast.take)
