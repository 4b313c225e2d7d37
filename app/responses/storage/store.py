"""Responses that have ended, in an SQLite file: they outlive the server.

Each row stands for itself: it has the whole conversation that it ends, so neither deleting nor
evicting an earlier response breaks a later one.

A response that `put` has returned for survives the end of the process, however it ends. After a
power cut or a crash of the operating system the last rows may be missing: a commit is not synced
(`synchronous = NORMAL`), which would take a disk milliseconds each. The file is whole in any case.

Where the file cannot be used, each operation raises `StoreUnavailable`; see `StoreFile`.
"""

from __future__ import annotations

import asyncio
import json

import aiosqlite

from app.json.json_text import ASCII, to_json
from app.responses.context import Context
from app.responses.response import StoredResponse
from app.responses.storage.retention_clock import ClockReading, RetentionClock
from app.responses.storage.store_file import StoreFile, change
from app.responses.storage.store_status import WRITE_PROBLEMS, StoreProblem, StoreUnavailable

_ROW_BYTES = 16_384
"""More than a row takes beyond its text: the pages that it fills in part."""
_MAX_ROWS_PER_SWEEP = 100
"""Expired rows that are deleted before others may write."""
_PROBE_ID = "probe"
_PROBE_BYTES = 65_536
"""Written to find out whether a disk that was full takes a response again."""
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
_KEEP_CLOCK = """
INSERT INTO retention_clock (number, counted_s, wall_s) VALUES (1, ?, ?)
ON CONFLICT DO UPDATE SET
    counted_s = max(counted_s, excluded.counted_s), wall_s = max(wall_s, excluded.wall_s)
"""


class ResponseStore:
    """Keeps responses up to an age and a size; the oldest goes first.

    Several processes may use one file.

    Args:
        file: is opened and closed with the store.
        ttl_s: how long a response is kept.
        max_bytes: how large the file may grow.
        clock: counts the age of responses.
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
        """What is wrong with the store, as far as is known; None if it can be used."""
        return self._file.problem

    def check_version(self) -> None:
        """Look at the file before anything else happens. Blocks.

        Raises:
            StoreTooNew: it has been written by a newer version.
        """
        self._file.check_version()

    async def open(self) -> None:
        """Open the file, and make it when it is missing.

        Raises:
            StoreTooNew: it has been written by a newer version.
            StoreUnavailable: it cannot be used now. Each operation tries to open it again.
        """
        await self._file.open()
        await self.sweep()

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        await self._file.aclose()

    async def put(self, response: StoredResponse, body: str) -> None:
        """Keep a response, and drop the oldest where there would be too much.

        Args:
            body: what `encode` returned for it.

        Raises:
            StoreUnavailable: it could not be written, or is larger than all may be together.
        """
        num_bytes = len(body) + _ROW_BYTES
        if num_bytes > self._max_bytes:
            raise StoreUnavailable(f"a response of {num_bytes} bytes is over the limit of all")
        async with self._file.using(writes=True) as connection:
            num_used_bytes = await self._file.check_disk(connection, num_bytes)
            await self._make_room(connection, num_bytes, num_used_bytes)
            expires_at = self._clock.now_s + self._ttl_s
            row = (response.response_id, response.caller, expires_at, body)
            await change(connection, _INSERT, *row)

    async def find(self, response_id: str, *, caller: str) -> StoredResponse | None:
        """Return the response, if it is here, the caller's, and not too old.

        Raises:
            StoreUnavailable: the file cannot be read; or the response is not there, which says
                nothing as long as the store has a problem.
        """
        if not response_id.isascii():
            return None  # as none of ours is
        async with self._file.using() as connection:
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
            raise StoreUnavailable(f"{self._file.path}: {response_id} is damaged") from error

    async def delete(self, response_id: str, *, caller: str) -> bool:
        """Forget a response, also on a full disk; return False if there was none of this caller.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        async with self._file.using(deletes=True) as connection:
            await self._file.check_file(connection)
            num_deleted = await self._file.delete(connection, _DELETE, response_id, caller)
            if num_deleted and self.problem is StoreProblem.FULL:
                await self._file.give_space_back(connection)
        return bool(num_deleted)

    async def sweep(self) -> None:
        """Move the retention clock on, and delete what has expired.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        async with self._file.using(deletes=True) as connection:
            await self._file.check_file(connection)
            await self._advance_clock(connection)
        num_deleted = _MAX_ROWS_PER_SWEEP
        while num_deleted == _MAX_ROWS_PER_SWEEP:
            async with self._file.using(deletes=True) as connection:
                num_deleted = await self._file.delete(
                    connection, _DELETE_EXPIRED, self._clock.now_s, _MAX_ROWS_PER_SWEEP
                )
        await self._file.take_ballast()

    async def check(self) -> None:
        """Find out whether the file can be used; called from time to time.

        Raises:
            StoreUnavailable: it cannot.
        """
        if self.problem not in WRITE_PROBLEMS:
            async with self._file.using() as connection:
                await self._file.check_file(connection, closely=True)
            return
        async with self._file.using(writes=True) as connection:
            await self._file.check_file(connection, closely=True)
            await self._file.check_disk(connection, _PROBE_BYTES + _ROW_BYTES)
            await change(connection, _PROBE, _PROBE_ID, "x" * _PROBE_BYTES)
            await self._file.delete(connection, _DELETE, _PROBE_ID, "")

    async def _advance_clock(self, connection: aiosqlite.Connection) -> None:
        rows = list(
            await connection.execute_fetchall("SELECT counted_s, wall_s FROM retention_clock")
        )
        if rows:
            kept = ClockReading(*rows[0])
        else:
            [[expires_at]] = await connection.execute_fetchall(
                "SELECT max(expires_at) FROM responses"
            )
            newest_s = None if expires_at is None else expires_at - self._ttl_s
            kept = self._clock.begin(newest_s=newest_s)
        reading = self._clock.advance(kept)
        await self._file.delete(connection, _KEEP_CLOCK, reading.counted_s, reading.wall_s)

    async def _make_room(
        self, connection: aiosqlite.Connection, num_bytes: int, num_used_bytes: int
    ) -> None:
        while num_used_bytes + num_bytes > self._max_bytes:
            if not await change(connection, _DELETE_OLDEST):
                return  # an empty file has a few pages, too
            [[num_used_bytes]] = await connection.execute_fetchall(_USED_BYTES)


def encode(response: StoredResponse) -> str:
    """Return what is written for a response; takes time by its size."""
    return to_json(
        {
            "snapshot": response.last_snapshot,
            "inherited": response.context.items[: response.context.num_inherited],
            "input": response.context.own,
        },
        encoder=ASCII,
    )


def decode(body: str, *, response_id: str, caller: str) -> StoredResponse:
    """Return the response that was written; takes time by its size."""
    fields = json.loads(body)
    return StoredResponse(
        response_id=response_id,
        caller=caller,
        last_snapshot=fields["snapshot"],
        context=Context.of(tuple(fields["inherited"]), tuple(fields["input"])),
        num_bytes=2 * len(body),
    )
