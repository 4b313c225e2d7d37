"""Stores ended responses in an SQLite file, so that they outlive the server.

Each row is self-contained: it has the whole conversation up to its response, so deleting or
evicting an earlier response does not break a later one.

Once `put` has returned, the response survives any end of the process. After a power failure or a
crash of the operating system the last rows may be missing: commits are not synced to the disk
(`synchronous = NORMAL`), which would take milliseconds each. The file stays consistent.

If the file cannot be used, each operation raises `StoreUnavailable`; see `StoreFile`.
"""

from __future__ import annotations

import asyncio
import json

import aiosqlite

from app.json.json_text import ASCII, to_json
from app.responses.context import Context
from app.responses.response import StoredResponse
from app.responses.storage.ballast import execute_change
from app.responses.storage.retention_clock import ClockReading, RetentionClock
from app.responses.storage.store_file import StoreFile
from app.responses.storage.store_status import WRITE_PROBLEMS, StoreProblem, StoreUnavailable

_ROW_BYTES = 16_384
"""Upper bound of a row's size beyond its text: the pages that it fills in part."""
_MAX_ROWS_PER_SWEEP = 100
"""Expired rows that one transaction deletes; other writers may run between two."""
_PROBE_ID = "probe"
_PROBE_BYTES = 65_536
"""Size of the row that `check` writes to see whether a full disk has space again."""
_FIND = "SELECT body FROM responses WHERE response_id = ? AND owner = ? AND expires_at >= ?"
_INSERT = "INSERT INTO responses (response_id, owner, expires_at, body) VALUES (?, ?, ?, ?)"
_PROBE = (
    "INSERT OR REPLACE INTO responses (response_id, owner, expires_at, body) VALUES (?, '', 0, ?)"
)
_DELETE = "DELETE FROM responses WHERE response_id = ? AND owner = ?"
_DELETE_OLDEST = "DELETE FROM responses WHERE number = (SELECT min(number) FROM responses)"
_DELETE_EXPIRED = (
    "DELETE FROM responses WHERE number IN "
    "(SELECT number FROM responses WHERE expires_at < ? LIMIT ?)"
)
_USED_BYTES = (
    "SELECT (page_count - freelist_count) * page_size FROM "
    "pragma_page_count, pragma_freelist_count, pragma_page_size"
)
_SAVE_CLOCK = """
INSERT INTO retention_clock (number, counted_s, wall_s) VALUES (1, ?, ?)
ON CONFLICT DO UPDATE SET
    counted_s = max(counted_s, excluded.counted_s), wall_s = max(wall_s, excluded.wall_s)
"""


class ResponseStore:
    """Stores responses up to an age and a total size; evicts the oldest first.

    Several processes may use one file.

    Args:
        file: opened and closed with the store.
        ttl_s: how long a response is stored.
        max_bytes: limit of the file's size.
        clock: measures the age of responses.
    """

    def __init__(
        self,
        file: StoreFile,
        *,
        ttl_s: float,
        max_bytes: int,
        clock: RetentionClock | None = None,
    ) -> None:
        self._file = file
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock or RetentionClock()

    @property
    def problem(self) -> StoreProblem | None:
        """The last known problem of the store; None if it can be used."""
        return self._file.problem

    def check_version(self) -> None:
        """Check the file's version without opening the store. Blocks.

        Raises:
            StoreTooNew: a newer version wrote the file.
        """
        self._file.check_version()

    async def open(self) -> None:
        """Open the file, create it if it is missing, and delete what has expired.

        Raises:
            StoreTooNew: a newer version wrote the file.
            StoreUnavailable: the file cannot be used now. Each operation tries to open it again.
        """
        await self._file.open()
        await self.sweep()

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        await self._file.aclose()

    async def put(self, response: StoredResponse, body: str) -> None:
        """Store a response, and evict the oldest ones if the file would be too large.

        Args:
            response: the response.
            body: what `encode` returned for it.

        Raises:
            StoreUnavailable: the file cannot be written, or the response exceeds `max_bytes`.
        """
        num_bytes = len(body) + _ROW_BYTES
        if num_bytes > self._max_bytes:
            raise StoreUnavailable(
                f"a response of {num_bytes} bytes exceeds the store's {self._max_bytes} bytes"
            )
        async with self._file.acquire(writes=True) as connection:
            num_used_bytes = await self._file.check_disk(connection, num_bytes)
            await self._make_room(connection, num_bytes, num_used_bytes)
            expires_at = self._clock.now_s + self._ttl_s
            row = (response.response_id, response.caller, expires_at, body)
            await execute_change(connection, _INSERT, *row)

    async def find(self, response_id: str, *, caller: str) -> StoredResponse | None:
        """Return a response of this caller; None if it is not stored or has expired.

        Raises:
            StoreUnavailable: the file cannot be read; or the response was not found while the store
                has a problem, so that it may exist.
        """
        if not response_id.isascii():
            return None  # all ids made by this server are ASCII
        async with self._file.acquire() as connection:
            rows = list(
                await connection.execute_fetchall(_FIND, (response_id, caller, self._clock.now_s))
            )
            if not rows:
                await self._file.check_file(connection)
        if not rows:
            if self.problem is not None:
                raise StoreUnavailable(f"{self._file.path}: {self.problem}", self.problem)
            return None
        try:
            return await asyncio.to_thread(
                decode, rows[0][0], response_id=response_id, caller=caller
            )
        except (ValueError, LookupError, TypeError) as error:
            raise StoreUnavailable(
                f"{self._file.path}: the row of {response_id} is damaged"
            ) from error

    async def delete(self, response_id: str, *, caller: str) -> bool:
        """Delete a response, even on a full disk; return False if the caller has none with this id.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        async with self._file.acquire(deletes=True) as connection:
            await self._file.check_file(connection)
            num_deleted = await self._file.delete(connection, _DELETE, response_id, caller)
            if num_deleted and self.problem is StoreProblem.FULL:
                await self._file.shrink(connection)
        return bool(num_deleted)

    async def sweep(self) -> None:
        """Advance the retention clock, and delete expired responses.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        async with self._file.acquire(deletes=True) as connection:
            await self._file.check_file(connection)
            await self._advance_clock(connection)
        num_deleted = _MAX_ROWS_PER_SWEEP
        while num_deleted == _MAX_ROWS_PER_SWEEP:
            async with self._file.acquire(deletes=True) as connection:
                num_deleted = await self._file.delete(
                    connection, _DELETE_EXPIRED, self._clock.now_s, _MAX_ROWS_PER_SWEEP
                )
        await self._file.take_ballast()

    async def check(self) -> None:
        """Check whether the file can be used; called periodically.

        Raises:
            StoreUnavailable: the file cannot be used.
        """
        if self.problem not in WRITE_PROBLEMS:
            async with self._file.acquire() as connection:
                await self._file.check_file(connection, reads_disk=True)
            return
        async with self._file.acquire(writes=True) as connection:
            await self._file.check_file(connection, reads_disk=True)
            await self._file.check_disk(connection, _PROBE_BYTES + _ROW_BYTES)
            await execute_change(connection, _PROBE, _PROBE_ID, "x" * _PROBE_BYTES)
            await self._file.delete(connection, _DELETE, _PROBE_ID, "")

    async def _advance_clock(self, connection: aiosqlite.Connection) -> None:
        rows = list(
            await connection.execute_fetchall("SELECT counted_s, wall_s FROM retention_clock")
        )
        if rows:
            saved = ClockReading(*rows[0])
        else:
            [[expires_at]] = await connection.execute_fetchall(
                "SELECT max(expires_at) FROM responses"
            )
            newest_s = None if expires_at is None else expires_at - self._ttl_s
            saved = self._clock.begin(newest_s=newest_s)
        reading = self._clock.advance(saved)
        await self._file.delete(connection, _SAVE_CLOCK, reading.counted_s, reading.wall_s)

    async def _make_room(
        self, connection: aiosqlite.Connection, num_bytes: int, num_used_bytes: int
    ) -> None:
        while num_used_bytes + num_bytes > self._max_bytes:
            if not await execute_change(connection, _DELETE_OLDEST):
                return  # even an empty file has a few pages
            [[num_used_bytes]] = await connection.execute_fetchall(_USED_BYTES)


def encode(response: StoredResponse) -> str:
    """Return the row of a response; takes time proportional to its size."""
    return to_json(
        {
            "snapshot": response.last_snapshot,
            "inherited": response.context.items[: response.context.num_inherited],
            "input": response.context.own,
        },
        encoder=ASCII,
    )


def decode(body: str, *, response_id: str, caller: str) -> StoredResponse:
    """Return the response of a row; takes time proportional to its size."""
    fields = json.loads(body)
    return StoredResponse(
        response_id=response_id,
        caller=caller,
        last_snapshot=fields["snapshot"],
        context=Context.of(tuple(fields["inherited"]), tuple(fields["input"])),
        num_bytes=2 * len(body),
    )
