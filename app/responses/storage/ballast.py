"""A file that only takes up space, so that there is some where a disk is full.

SQLite needs space to delete: the pages that change are first appended to the write-ahead log.
Without this file nothing could be deleted from a full disk.
"""

from __future__ import annotations

import os
from pathlib import Path

BALLAST_BYTES = 2**20


class Ballast:
    """Space that is kept for deletions. Its methods access the disk: call them on a worker thread.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path, *, num_bytes: int = BALLAST_BYTES) -> None:
        self._path = path
        self._num_bytes = num_bytes

    def take(self) -> bool:
        """Take the space up, and return whether there was enough."""
        try:
            if self._path.exists() and self._path.stat().st_size >= self._num_bytes:
                return True
            self._path.touch(mode=0o600)
            # Random, because some file systems store a file of zeros in no space.
            self._path.write_bytes(os.urandom(self._num_bytes))
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give the space back."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            return  # the deletion that needs it will fail, and say why
