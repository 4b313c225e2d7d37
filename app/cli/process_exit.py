"""Ends the process for certain, also where threads hang that the interpreter would wait for."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import NoReturn


def exit_now(message: str | None, *, status: int) -> NoReturn:
    """End the process without waiting for anything.

    Args:
        message: the last line on standard error.
    """
    if message is not None:
        sys.stderr.write(f"tokenwire: {message}\n")
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def exit_within(delay_s: float, message: str, *, status: int) -> None:
    """End the process after `delay_s` seconds, unless it has ended by itself."""
    timer = threading.Timer(delay_s, exit_now, (message,), {"status": status})
    timer.daemon = True
    timer.start()
