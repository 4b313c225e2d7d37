"""Converted models on disk, each in a folder of its own that is either whole or not there.

A folder is built aside, written through to the disk and renamed, so a build that is killed leaves
only a `.partial` folder, which nobody reads and the next build sweeps. A lock file for each entry
lets one process build while the others wait.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from streaming.backends import OnProgress
from streaming.backends.loading.load_failure import failing_as

FORMAT_VERSION = 1
"""Part of each key: entries that an older converter wrote are not used again."""

_MANIFEST = "tokenwire.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A model that is on this disk.

    Attributes:
        name: for a hub model its id, to be given to `--model`.
        created_at: unix seconds.
        source: the file that was converted, or "hub".
    """

    name: str
    path: Path
    num_bytes: int
    created_at: float
    source: str


def default_cache_dir() -> Path:
    return Path(platformdirs.user_cache_dir("tokenwire", appauthor=False))


class ModelCache:
    """Folders by name and key.

    Args:
        cache_dir: where they lie; None is the user's cache directory.
    """

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        root = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self._models_dir = root / "models"

    def get_or_build(
        self,
        *,
        name: str,
        key: str,
        source: str,
        build: Callable[[Path], None],
        on_progress: OnProgress,
    ) -> Path:
        """Return the folder of `key`; if it is not there, have `build` fill it first.

        Raises:
            ModelLoadError: the folder cannot be written, or `build` failed.
        """
        safe_name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".")
        entry = self._models_dir / f"{safe_name}-v{FORMAT_VERSION}-{key[:16]}"
        if _is_whole(entry):
            return entry
        with failing_as(f"{name} cannot be stored in {self._models_dir}"):
            self._models_dir.mkdir(parents=True, exist_ok=True)
            with self._locked(entry.name, name, on_progress):
                if not _is_whole(entry):
                    self._sweep()
                    self._build(entry, name, source, build)
        return entry

    def entries(self) -> list[CachedModel]:
        """Return what is whole, oldest first."""
        found = (
            CachedModel(
                name=manifest["name"],
                path=entry,
                num_bytes=sum(manifest["files"].values()),
                created_at=manifest["created_at"],
                source=manifest["source"],
            )
            for entry in self._models_dir.glob("[!.]*")
            if (manifest := _read_manifest(entry)) is not None
        )
        return sorted(found, key=lambda model: model.created_at)

    def _build(self, entry: Path, name: str, source: str, build: Callable[[Path], None]) -> None:
        partial = self._partial(entry.name)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            manifest = {
                "name": name,
                "source": source,
                "created_at": time.time(),
                "format_version": FORMAT_VERSION,
                "files": {path.name: path.stat().st_size for path in sorted(partial.iterdir())},
            }
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2))
            for path in (*partial.iterdir(), partial):
                _write_through(path)
            shutil.rmtree(entry, ignore_errors=True)  # one that somebody has taken files out of
            partial.rename(entry)
            _write_through(self._models_dir)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed builds have left; a build that goes on holds its lock."""
        for partial in self._models_dir.glob(".*.partial"):
            lock = self._lock(partial.name.removeprefix(".").removesuffix(".partial"))
            try:
                with lock.acquire(timeout=0):
                    shutil.rmtree(partial, ignore_errors=True)
            except Timeout:
                continue

    @contextmanager
    def _locked(self, entry_name: str, name: str, on_progress: OnProgress) -> Iterator[None]:
        lock = self._lock(entry_name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_progress(f"Waiting for another process that converts {name}", None)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lock(self, entry_name: str) -> FileLock:
        return FileLock(self._models_dir / f".{entry_name}.lock")

    def _partial(self, entry_name: str) -> Path:
        return self._models_dir / f".{entry_name}.partial"


def list_cached_models(
    cache_dir: str | Path | None = None, *, hub_cache_dir: str | Path | None = None
) -> list[CachedModel]:
    """Return the converted models, then those that were downloaded from the hub.

    Args:
        cache_dir: where converted models lie; None is the user's cache directory.
        hub_cache_dir: where hub models lie; None is huggingface_hub's own choice.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(hub_cache_dir).repos
    except CacheNotFound:
        repos = frozenset()
    hub_models = [
        CachedModel(
            name=repo.repo_id,
            path=Path(repo.repo_path),
            num_bytes=repo.size_on_disk,
            created_at=repo.last_modified,
            source="hub",
        )
        for repo in repos
        if repo.repo_type == "model" and repo.size_on_disk
    ]
    return ModelCache(cache_dir).entries() + sorted(hub_models, key=lambda model: model.name)


def _read_manifest(entry: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((entry / _MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest


def _is_whole(entry: Path) -> bool:
    manifest = _read_manifest(entry)
    if manifest is None:
        return False
    sizes = {path.name: path.stat().st_size for path in entry.iterdir()}
    return all(sizes.get(name) == size for name, size in manifest["files"].items())


def _write_through(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # a folder cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
