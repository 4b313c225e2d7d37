"""Where log lines go and how they look; the only place that configures logging."""

from __future__ import annotations

import logging
import sys

_QUIET = ("httpx", "httpcore", "filelock", "websockets", "asyncio", "urllib3", "uvicorn.error")
"""Libraries that are heard from a warning up."""


def configure_logging(level: str) -> None:
    """Send log lines of `level` and above to standard error."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    if level != "debug":
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
