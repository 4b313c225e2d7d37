"""The state of the store and of what is stored: problems of the file, outcomes of writes.

Errors of SQLite and of the file system are mapped to names that are safe to show to clients.
"""

from __future__ import annotations

import errno
import sqlite3
from dataclasses import dataclass
from enum import StrEnum


class StoreProblem(StrEnum):
    """Why the store cannot be used, as `/health` shows it; contains no path and no OS message."""

    FULL = "disk_full"
    READ_ONLY = "read_only"
    DAMAGED = "damaged"
    REMOVED = "removed"
    BUSY = "locked_by_another_process"
    NOT_ANSWERING = "disk_does_not_answer"
    CANNOT_OPEN = "cannot_be_opened"
    TOO_NEW = "written_by_a_newer_version"
    IO_ERROR = "io_error"


WRITE_PROBLEMS = frozenset({StoreProblem.FULL, StoreProblem.READ_ONLY})
"""Problems of writing only: reads still work, and only a successful write clears the problem."""


class StoreUnavailable(Exception):
    """Raised if the file cannot be read or written; `str()` gives the reason for the log.

    Attributes:
        problem: the problem of the store as a whole; None if only this operation failed.
    """

    def __init__(self, message: str, problem: StoreProblem | None = None) -> None:
        self.problem = problem
        super().__init__(message)


class StoreTooNew(StoreUnavailable):
    """Raised if a newer version of Tokenwire wrote the file; this version must leave it alone."""

    def __init__(self, message: str) -> None:
        super().__init__(message, StoreProblem.TOO_NEW)


@dataclass(slots=True)
class StorageOutcome:
    """Whether a response was stored. Its terminal event is sent once this is decided.

    A client that has read the terminal event can rely on it: either the response is in the store,
    or the event says `store: false`. All readers get the same terminal event.

    Attributes:
        is_decided: the write is over, or there is nothing to write.
        is_lost: the response should have been stored, and the write failed.
    """

    is_decided: bool = True
    is_lost: bool = False


_BY_PRIMARY_CODE = {
    sqlite3.SQLITE_FULL: StoreProblem.FULL,
    sqlite3.SQLITE_READONLY: StoreProblem.READ_ONLY,
    sqlite3.SQLITE_CORRUPT: StoreProblem.DAMAGED,
    sqlite3.SQLITE_NOTADB: StoreProblem.DAMAGED,
    sqlite3.SQLITE_BUSY: StoreProblem.BUSY,
    sqlite3.SQLITE_LOCKED: StoreProblem.BUSY,
    sqlite3.SQLITE_CANTOPEN: StoreProblem.CANNOT_OPEN,
    sqlite3.SQLITE_PERM: StoreProblem.CANNOT_OPEN,
}
_BY_EXTENDED_CODE = {
    sqlite3.SQLITE_READONLY_DBMOVED: StoreProblem.REMOVED,
    # The shared-memory file beside the database could not grow: the disk is full.
    sqlite3.SQLITE_IOERR_SHMSIZE: StoreProblem.FULL,
}
_BY_ERRNO = {
    errno.ENOSPC: StoreProblem.FULL,
    errno.EDQUOT: StoreProblem.FULL,
    errno.EROFS: StoreProblem.READ_ONLY,
    errno.ENOENT: StoreProblem.REMOVED,
}


def problem_of(error: Exception) -> StoreProblem:
    """Return the problem of the store that an error of SQLite or of the file system stands for."""
    if isinstance(error, StoreUnavailable):
        return error.problem or StoreProblem.IO_ERROR
    if isinstance(error, TimeoutError):
        return StoreProblem.NOT_ANSWERING
    if isinstance(error, OSError):
        return _BY_ERRNO.get(error.errno or 0, StoreProblem.CANNOT_OPEN)
    code = getattr(error, "sqlite_errorcode", 0)
    primary = _BY_PRIMARY_CODE.get(code & 0xFF, StoreProblem.IO_ERROR)
    return _BY_EXTENDED_CODE.get(code, primary)
