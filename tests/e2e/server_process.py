"""Runs a real server in a subprocess, started from the command line."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 60


class ServerProcess:
    """Runs `python -m app serve` on a free port. The constructor waits until it is ready.

    Args:
        flags: Command-line options of `tokenwire serve`, or of `module`.
        env: Variables to add to the environment.
        module: Module to run instead of `app serve`; it gets only `flags`.
    """

    def __init__(
        self, *flags: str, env: dict[str, str] | None = None, module: str | None = None
    ) -> None:
        self.lines: list[str] = []
        self._has_logged = threading.Condition()
        self._is_ready = threading.Event()
        self.url = ""
        command = ("app", "serve", "--port", "0") if module is None else (module,)
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, *flags],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            assert self._is_ready.wait(_START_TIMEOUT_S), self.log
            assert self.url, self.log
        except BaseException:  # for example the test's timeout
            self.process.kill()
            self.wait()
            raise

    @property
    def ws_url(self) -> str:
        """URL of `WS /v1/stream`."""
        return self.url.replace("http", "ws", 1) + "/v1/stream"

    @property
    def log(self) -> str:
        """What the server has written to standard error so far."""
        return "".join(self.lines)

    async def logs(self, text: str) -> None:
        """Wait until the server has logged `text`."""

        def wait() -> bool:
            with self._has_logged:
                return self._has_logged.wait_for(lambda: text in self.log, _STOP_TIMEOUT_S)

        assert await asyncio.to_thread(wait), self.log

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the process to exit and return its exit status."""
        status = self.process.wait(_STOP_TIMEOUT_S)
        self._reader.join(_STOP_TIMEOUT_S)
        return status

    def stop(self) -> int:
        """Stop the process with SIGTERM if it is running, and return its exit status."""
        if self.process.poll() is None:
            self.signal()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._has_logged:
                    self.lines.append(line)
                    self._has_logged.notify_all()
                if found := re.search(r"the chat page is at (\S+)", line):
                    self.url = found[1]
                    self._is_ready.set()
        self._is_ready.set()
