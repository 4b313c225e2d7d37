"""Why the store of responses cannot be used: errors of SQLite as words that are safe to show."""

from __future__ import annotations

import errno
import sqlite3
from enum import StrEnum


class StoreProblem(StrEnum):
    """Shown by `/health`; names no path and no text of the operating system."""

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
"""Responses can still be read; only a write shows that the problem is over."""


class StoreUnavailable(Exception):
    """The file cannot be read or written; `str()` says why, for the operator.

    Attributes:
        problem: what is wrong with the store as a whole; None if only this request is refused.
    """

    def __init__(self, message: str, problem: StoreProblem | None = None) -> None:
        self.problem = problem
        super().__init__(message)


class StoreTooNew(StoreUnavailable):
    """A newer version of Tokenwire has written the file; this one must not touch it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, StoreProblem.TOO_NEW)


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
    """Return what an error of SQLite or of the file system means for the store."""
    if isinstance(error, StoreUnavailable):
        return error.problem or StoreProblem.IO_ERROR
    if isinstance(error, TimeoutError):
        return StoreProblem.NOT_ANSWERING
    if isinstance(error, OSError):
        return _BY_ERRNO.get(error.errno or 0, StoreProblem.CANNOT_OPEN)
    code = getattr(error, "sqlite_errorcode", 0)
    primary = _BY_PRIMARY_CODE.get(code & 0xFF, StoreProblem.IO_ERROR)
    return _BY_EXTENDED_CODE.get(code, primary)
