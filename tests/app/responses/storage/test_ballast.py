from __future__ import annotations

from pathlib import Path

import aiosqlite
import pytest

from app.responses.storage.ballast import Ballast, delete_with_ballast, shrink


def test_the_ballast_takes_and_releases_space(tmp_path: Path):
    path = tmp_path / "ballast"
    ballast = Ballast(path, num_bytes=1000)
    for _ in range(2):
        assert ballast.take()
        assert ballast.take()
        assert path.stat().st_size == 1000
        assert path.stat().st_mode & 0o077 == 0
        ballast.release()
        ballast.release()
        assert not path.exists()


def test_the_ballast_is_taken_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "ballast"
    path.write_bytes(b"x")
    assert Ballast(path, num_bytes=10).take()
    assert path.stat().st_size == 10
    assert not Ballast(tmp_path / "no" / "folder").take()
    Ballast(tmp_path / "no" / "folder").release()


async def test_a_deletion_with_enough_space_does_not_touch_the_ballast(tmp_path: Path):
    ballast = Ballast(tmp_path / "ballast", num_bytes=1000)
    async with aiosqlite.connect(tmp_path / "file.sqlite3", isolation_level=None) as connection:
        await connection.executescript("CREATE TABLE t (n); INSERT INTO t VALUES (1), (2), (3);")
        assert await delete_with_ballast(connection, ballast, "DELETE FROM t WHERE n < ?", 3) == 2
        with pytest.raises(aiosqlite.OperationalError, match="no such table"):
            await delete_with_ballast(connection, ballast, "DELETE FROM u")
    assert not (tmp_path / "ballast").exists()


async def test_shrinking_returns_free_pages_and_takes_the_ballast_again(tmp_path: Path):
    path = tmp_path / "file.sqlite3"
    ballast = Ballast(tmp_path / "ballast", num_bytes=1000)

    def sizes() -> tuple[int, int]:
        return path.stat().st_size, Path(f"{path}-wal").stat().st_size

    async with aiosqlite.connect(path, isolation_level=None) as connection:
        await connection.executescript(
            "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; CREATE TABLE t (text);"
        )
        await connection.execute("INSERT INTO t VALUES (?)", ("x" * 2**20,))
        await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        num_bytes, _ = sizes()
        await connection.execute("DELETE FROM t")
        assert sizes()[1] > 0, "the write-ahead log has the deletion"
        await shrink(connection, ballast)
        num_bytes_left, num_wal_bytes = sizes()
        assert num_bytes_left < num_bytes / 20, "all pages of the row are free"
        assert num_wal_bytes == 0
        [[secure_delete]] = await connection.execute_fetchall("PRAGMA secure_delete")
        assert secure_delete == 1, "later deletions overwrite their data"
    assert (tmp_path / "ballast").exists()
