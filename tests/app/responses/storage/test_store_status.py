from __future__ import annotations

import errno
import sqlite3

import pytest

from app.responses.storage.store_status import StoreProblem, StoreUnavailable, problem_of


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("told by SQLite")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (sqlite_error(sqlite3.SQLITE_FULL), StoreProblem.FULL),
        (sqlite_error(sqlite3.SQLITE_IOERR_SHMSIZE), StoreProblem.FULL),
        (sqlite_error(sqlite3.SQLITE_READONLY), StoreProblem.READ_ONLY),
        (sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED), StoreProblem.REMOVED),
        (sqlite_error(sqlite3.SQLITE_READONLY_ROLLBACK), StoreProblem.READ_ONLY),
        (sqlite_error(sqlite3.SQLITE_CORRUPT_INDEX), StoreProblem.DAMAGED),
        (sqlite_error(sqlite3.SQLITE_NOTADB), StoreProblem.DAMAGED),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), StoreProblem.BUSY),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN_ISDIR), StoreProblem.CANNOT_OPEN),
        (sqlite_error(sqlite3.SQLITE_IOERR_READ), StoreProblem.IO_ERROR),
        (sqlite3.ProgrammingError("closed"), StoreProblem.IO_ERROR),
        (TimeoutError(), StoreProblem.NOT_ANSWERING),
        (OSError(errno.ENOSPC, ""), StoreProblem.FULL),
        (OSError(errno.EROFS, ""), StoreProblem.READ_ONLY),
        (FileNotFoundError(errno.ENOENT, ""), StoreProblem.REMOVED),
        (PermissionError(errno.EACCES, ""), StoreProblem.CANNOT_OPEN),
        (StoreUnavailable("", StoreProblem.BUSY), StoreProblem.BUSY),
    ],
)
def test_errors_map_to_problems(error: Exception, problem: StoreProblem):
    assert problem_of(error) is problem
