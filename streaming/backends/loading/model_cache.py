"""Stores converted models on disk, each in a folder that is complete or absent.

A model is built in a `.partial` folder, flushed to disk and then renamed. A killed build leaves
only the `.partial` folder, which is never read and which the next build removes. A lock file for
each entry makes other processes wait while one builds.
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
from streaming.backends.loading.load_failure import as_load_error

FORMAT_VERSION = 1
"""Part of each entry's name, so that entries of an older converter are ignored."""

_MANIFEST = "tokenwire.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A model on this disk.

    Attributes:
        name: the model's name. For a hub model it is the id that `--model` takes.
        path: its folder.
        num_bytes: size on disk.
        created_at: time in Unix seconds.
        source: the file that was converted, or "hub".
    """

    name: str
    path: Path
    num_bytes: int
    created_at: float
    source: str


def default_cache_dir() -> Path:
    """Return Tokenwire's folder in the user's cache directory."""
    return Path(platformdirs.user_cache_dir("tokenwire", appauthor=False))


class ModelCache:
    """The folders of the converted models, by name and key.

    Args:
        cache_dir: the folder that holds them. None is the user's cache directory.
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
        """Return the folder for `key`. If it is missing, call `build` to fill it first.

        Args:
            name: name of the model, part of the folder's name.
            key: hash of the source, at least 16 characters.
            source: the file that is converted, for `CachedModel.source`.
            build: writes the model's files into an empty folder.
            on_progress: called if another process holds the lock.

        Raises:
            ModelLoadError: the folder cannot be written, or `build` failed.
        """
        safe_name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".")
        entry = self._models_dir / f"{safe_name}-v{FORMAT_VERSION}-{key[:16]}"
        if _is_complete(entry):
            return entry
        with as_load_error(f"{name} cannot be stored in {self._models_dir}"):
            self._models_dir.mkdir(parents=True, exist_ok=True)
            with self._locked(entry.name, name, on_progress):
                if not _is_complete(entry):
                    self._remove_partial_folders()
                    self._build(entry, name, source, build)
        return entry

    def entries(self) -> list[CachedModel]:
        """Return the entries that have a manifest, oldest first."""
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
                _flush_to_disk(path)
            shutil.rmtree(entry, ignore_errors=True)  # an entry that has lost files
            partial.rename(entry)
            _flush_to_disk(self._models_dir)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _remove_partial_folders(self) -> None:
        """Remove the folders of killed builds; a running build holds its lock."""
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
            on_progress(f"Waiting for another process to convert {name}", None)
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
    """Return the converted models, then the models that were downloaded from the hub.

    Args:
        cache_dir: the folder of converted models. None is the user's cache directory.
        hub_cache_dir: the folder of hub models. None is the default of huggingface_hub.
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


def _is_complete(entry: Path) -> bool:
    manifest = _read_manifest(entry)
    if manifest is None:
        return False
    sizes = {path.name: path.stat().st_size for path in entry.iterdir()}
    return all(sizes.get(name) == size for name, size in manifest["files"].items())


def _flush_to_disk(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
