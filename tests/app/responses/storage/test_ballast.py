from __future__ import annotations

from pathlib import Path

from app.responses.storage.ballast import Ballast


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
