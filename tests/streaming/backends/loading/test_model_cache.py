from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from streaming.backends.loading.model_cache import ModelCache, default_cache_dir, list_cached_models
from streaming.errors import ModelLoadError

KEY = "0123456789abcdef0123"

BUILDER = """
import sys
from pathlib import Path
from streaming.backends.loading.model_cache import ModelCache

def build(folder):
    (folder / "half").write_text("half")
    print("building", flush=True)
    sys.stdin.readline()
    (folder / "weights").write_text("other process")

cache = ModelCache(sys.argv[1])
cache.get_or_build(
    name="m", key=sys.argv[2], source="s", build=build, on_progress=lambda *_: None
)
"""


class Builder:
    """Fills folders and counts them."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.num_builds = 0
        self._error = error

    def __call__(self, folder: Path) -> None:
        self.num_builds += 1
        (folder / "weights").write_text("w" * 1000)
        if self._error is not None:
            raise self._error


def get(cache: ModelCache, builder: Builder, *, key: str = KEY, name: str = "m") -> Path:
    return cache.get_or_build(
        name=name, key=key, source="s.gguf", build=builder, on_progress=lambda *_: None
    )


@contextmanager
def other_process(cache_dir: Path, *, key: str = KEY) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock and has built half of the folder."""
    command = [sys.executable, "-c", BUILDER, str(cache_dir), key]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert stream(process.stdout).readline() == "building\n"
            yield process
        finally:
            process.kill()


def stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path)


def test_builds_once(cache: ModelCache) -> None:
    builder = Builder()
    first = get(cache, builder)
    assert get(cache, builder) == first
    assert builder.num_builds == 1
    assert (first / "weights").read_text() == "w" * 1000


def test_other_content_has_another_entry(cache: ModelCache) -> None:
    first, second = get(cache, Builder()), get(cache, Builder(), key="f" * 20)
    assert first != second
    assert len(cache.entries()) == 2


def test_a_name_cannot_escape_the_folder(cache: ModelCache, tmp_path: Path) -> None:
    entry = get(cache, Builder(), name="../../evil name")
    assert entry.parent == tmp_path / "models"
    assert not entry.name.startswith(".")


def test_entry_that_lost_a_file_is_built_again(cache: ModelCache) -> None:
    builder = Builder()
    (get(cache, builder) / "weights").write_text("cut")
    assert (get(cache, builder) / "weights").read_text() == "w" * 1000
    assert builder.num_builds == 2


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_failed_build_leaves_nothing(
    cache: ModelCache, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises((ModelLoadError, KeyboardInterrupt)):
        get(cache, Builder(error))
    assert cache.entries() == []
    assert [path.suffix for path in (tmp_path / "models").iterdir()] in ([".lock"], [])
    assert (get(cache, Builder()) / "weights").exists()


def test_full_disk_is_one_clear_line(cache: ModelCache, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ModelLoadError) as caught:
        get(cache, Builder(full))
    expected = f"m cannot be stored in {tmp_path / 'models'}: no space left on the disk"
    assert str(caught.value) == expected


def test_a_cache_dir_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelLoadError, match=r"cannot be stored in .*: Not a directory"):
        get(ModelCache(tmp_path / "file"), Builder())


def test_a_killed_build_is_ignored_and_removed(cache: ModelCache, tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        process.kill()
        process.wait()
    assert len(list((tmp_path / "models").glob(".*.partial"))) == 1
    assert cache.entries() == []
    entry = get(cache, Builder(), key="f" * 20)
    assert list((tmp_path / "models").glob(".*.partial")) == []
    assert cache.entries()[0].path == entry


def test_killed_build_of_the_same_model_starts_anew(cache: ModelCache, tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        process.kill()
        process.wait()
    entry = get(cache, Builder())
    assert sorted(path.name for path in entry.iterdir()) == ["tokenwire.json", "weights"]


def test_a_running_build_is_not_removed(cache: ModelCache, tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        get(cache, Builder(), key="f" * 20)
        process.communicate("go on\n")
        assert process.returncode == 0
    assert len(cache.entries()) == 2


def test_second_process_waits_and_says_so(cache: ModelCache, tmp_path: Path) -> None:
    reports: list[str] = []
    has_reported = threading.Event()
    builder = Builder()

    def on_progress(text: str, _: float | None) -> None:
        reports.append(text)
        has_reported.set()

    entries: list[Path] = []
    with other_process(tmp_path) as process:
        thread = threading.Thread(
            target=lambda: entries.append(
                cache.get_or_build(
                    name="m", key=KEY, source="s", build=builder, on_progress=on_progress
                )
            )
        )
        thread.start()
        assert has_reported.wait(20)
        process.communicate("go on\n")
        thread.join()
    assert reports == ["Waiting for another process to convert m"]
    assert builder.num_builds == 0
    assert (entries[0] / "weights").read_text() == "other process"


def test_the_list_has_converted_models(cache: ModelCache, tmp_path: Path) -> None:
    entry = get(cache, Builder(), name="tiny")
    (model,) = list_cached_models(tmp_path, hub_cache_dir=tmp_path / "none")
    manifest = json.loads((entry / "tokenwire.json").read_text())
    assert (model.name, model.path, model.num_bytes, model.source) == (
        "tiny",
        entry,
        1000,
        "s.gguf",
    )
    assert model.created_at == manifest["created_at"]


def test_the_list_has_hub_models(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "hub" / "datasets--org--data" / "snapshots").mkdir(parents=True)
    (model,) = list_cached_models(tmp_path, hub_cache_dir=tmp_path / "hub")
    assert (model.name, model.num_bytes, model.source) == ("org/name", 2, "hub")


def test_list_of_nothing(tmp_path: Path) -> None:
    assert list_cached_models(tmp_path / "a", hub_cache_dir=tmp_path / "b") == []


def test_listing_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from streaming.backends.loading.model_cache import list_cached_models as ls;"
        f"ls({str(tmp_path)!r}); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_default_is_the_users_cache() -> None:
    assert "tokenwire" in default_cache_dir().parts
