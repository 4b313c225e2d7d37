"""Process-wide setup and exit: where log lines go, and how to end despite hanging threads."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import NoReturn

QUIET_LOGGERS = (
    "httpx",
    "httpcore",
    "filelock",
    "websockets",
    "asyncio",
    "urllib3",
    "uvicorn.error",
)
"""Loggers of libraries, which log warnings and errors only."""


def configure_logging(level: str) -> None:
    """Write log lines of `level` and above to standard error.

    At the level `debug`, the libraries of `QUIET_LOGGERS` log everything, too.
    """
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    if level != "debug":
        for name in QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)


def exit_now(message: str | None, *, status: int) -> NoReturn:
    """End the process without waiting for its threads, which the interpreter would do.

    Args:
        message: the last line on standard error; None writes none.
        status: the exit status.
    """
    if message is not None:
        sys.stderr.write(f"tokenwire: {message}\n")
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def exit_within(delay_s: float, message: str, *, status: int) -> None:
    """End the process in `delay_s` seconds with `exit_now`, unless it has ended before."""
    timer = threading.Timer(delay_s, exit_now, (message,), {"status": status})
    timer.daemon = True
    timer.start()
