"""Runs `tokenwire serve` in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import Self

_START_TIMEOUT_S = 600.0


class Server:
    """A server that is ready when the constructor returns. `close` ends it.

    Args:
        flags: flags of `tokenwire serve`.
    """

    def __init__(self, *flags: str) -> None:
        started_at = time.perf_counter()
        self.port = free_port()
        command = [sys.executable, "-m", "app", "serve", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--log-level", "error", *flags], stderr=subprocess.DEVNULL
        )
        while not self._is_ready():
            has_ended = self._process.poll() is not None
            if has_ended or time.perf_counter() - started_at > _START_TIMEOUT_S:
                self.close()
                raise SystemExit(
                    "the server did not become ready; run `tokenwire serve` to see why"
                )
            time.sleep(0.02)
        self.start_s = time.perf_counter() - started_at

    def close(self) -> None:
        """Stop the server, and wait for its process to end."""
        self._process.terminate()
        self._process.wait()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1):
                return True
        except (urllib.error.URLError, TimeoutError):
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def free_port() -> int:
    """Return a free TCP port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
