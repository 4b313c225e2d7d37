"""Responses that have ended, in an SQLite file: they outlive the server.

Each row stands for itself: it has the whole conversation that it ends, so neither deleting nor
evicting an earlier response breaks a later one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiosqlite

from app.responses.context import Context
from app.responses.response import StoredResponse

FILE_NAME = "responses.sqlite3"

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order in which they ended
    response_id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    expires_at REAL NOT NULL,  -- unix seconds
    body TEXT NOT NULL  -- JSON
) STRICT;
CREATE INDEX IF NOT EXISTS responses_by_expiry ON responses (expires_at);
"""
_MAX_LOG_BYTES = 2**20
"""Size to which the write-ahead log is cut back."""
_ROW_BYTES = 16_384
"""More than a row takes beyond its text: the pages that it fills in part."""
_BUSY_TIMEOUT_S = 5.0
"""How long another process may hold the file."""


class StoreUnavailable(Exception):
    """The file cannot be read or written; `str()` says why, for the operator."""


class ResponseStore:
    """Keeps responses up to an age and a size; the oldest goes first.

    Several processes may use one file.

    Args:
        directory: made when it is missing.
        ttl_s: how long a response is kept.
        max_bytes: how large the file may grow.
        clock: unix seconds.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ttl_s: float,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._connection: aiosqlite.Connection | None = None
        self._writing = asyncio.Lock()
        """Held from making room to taking it."""

    @property
    def path(self) -> Path:
        return self._directory / FILE_NAME

    async def open(self) -> None:
        """Open the file, and make it when it is missing.

        Raises:
            StoreUnavailable: it cannot be made, is no such file, or is of a newer version.
        """
        try:
            await asyncio.to_thread(self._make_file)
            self._connection = await aiosqlite.connect(
                self.path,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,  # each statement is a transaction
            )
            await self._prepare(self._connection)
        except (OSError, aiosqlite.Error, StoreUnavailable) as error:
            await self.aclose()
            raise StoreUnavailable(f"{self.path}: {error}") from error

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def put(self, response: StoredResponse, body: str) -> None:
        """Keep a response, and drop what is too old or too much.

        Args:
            body: what `encode` returned for it.

        Raises:
            StoreUnavailable: it could not be written, or is larger than all may be together.
        """
        num_bytes = len(body) + _ROW_BYTES
        if num_bytes > self._max_bytes:
            raise StoreUnavailable(f"a response of {num_bytes} bytes is over the limit of all")
        async with self._writing:
            await self._make_room(num_bytes)
            await self._execute(
                "INSERT INTO responses (response_id, owner, expires_at, body) VALUES (?, ?, ?, ?)",
                response.response_id,
                response.owner,
                self._clock() + self._ttl_s,
                body,
            )

    async def find(self, response_id: str, *, owner: str) -> StoredResponse | None:
        """Return the response, if it is here, the owner's, and not too old.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        rows = await self._fetch(
            "SELECT body FROM responses WHERE response_id = ? AND owner = ? AND expires_at >= ?",
            response_id,
            owner,
            self._clock(),
        )
        if not rows:
            return None
        try:
            return await asyncio.to_thread(decode, rows[0][0], response_id=response_id, owner=owner)
        except (ValueError, LookupError, TypeError) as error:
            raise StoreUnavailable(f"{self.path}: {response_id} is damaged") from error

    async def delete(self, response_id: str, *, owner: str) -> bool:
        """Forget a response; return False if there was none of this owner.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        return bool(
            await self._execute(
                "DELETE FROM responses WHERE response_id = ? AND owner = ?", response_id, owner
            )
        )

    def _make_file(self) -> None:
        """Make what is missing, for this user only; SQLite's other files take after this one."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.touch(mode=0o600)

    async def _prepare(self, connection: aiosqlite.Connection) -> None:
        [[version]] = await connection.execute_fetchall("PRAGMA user_version")
        if version not in (0, _SCHEMA_VERSION):
            raise StoreUnavailable(f"has the schema {version}, which is newer than this server")
        await connection.execute_fetchall("PRAGMA journal_mode = WAL")
        await connection.execute_fetchall(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}")
        # After a power cut the last rows may be missing; the file is whole in any case.
        await connection.execute_fetchall("PRAGMA synchronous = NORMAL")
        await connection.execute_fetchall("PRAGMA secure_delete = ON")
        await connection.executescript(_SCHEMA)
        await connection.execute_fetchall(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    async def _make_room(self, num_bytes: int) -> None:
        await self._execute("DELETE FROM responses WHERE expires_at < ?", self._clock())
        while await self._num_used_bytes() + num_bytes > self._max_bytes:
            num_deleted = await self._execute(
                "DELETE FROM responses WHERE number = (SELECT min(number) FROM responses)"
            )
            if not num_deleted:
                break  # an empty file has a few pages, too

    async def _num_used_bytes(self) -> int:
        [[num_bytes]] = await self._fetch(
            "SELECT (page_count - freelist_count) * page_size FROM "
            "pragma_page_count, pragma_freelist_count, pragma_page_size"
        )
        assert isinstance(num_bytes, int)
        return num_bytes

    async def _execute(self, statement: str, *parameters: Any) -> int:
        """Run a statement and return how many rows it changed."""
        try:
            async with self._opened().execute(statement, parameters) as cursor:
                return cursor.rowcount
        except (aiosqlite.Error, ValueError) as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error

    async def _fetch(self, statement: str, *parameters: Any) -> list[Any]:
        try:
            return list(await self._opened().execute_fetchall(statement, parameters))
        except (aiosqlite.Error, ValueError) as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def _opened(self) -> aiosqlite.Connection:
        if self._connection is None:
            raise StoreUnavailable(f"{self.path}: is not open")
        return self._connection


def encode(response: StoredResponse) -> str:
    """Return what is written for a response; takes time by its size."""
    return json.dumps(
        {
            "snapshot": response.last_snapshot,
            "inherited": response.context.items[: response.context.num_inherited],
            "input": response.context.own,
        }
    )


def decode(body: str, *, response_id: str, owner: str) -> StoredResponse:
    """Return the response that was written; takes time by its size."""
    fields = json.loads(body)
    return StoredResponse(
        response_id=response_id,
        owner=owner,
        last_snapshot=fields["snapshot"],
        context=Context.of(tuple(fields["inherited"]), tuple(fields["input"])),
        num_bytes=2 * len(body),
    )
