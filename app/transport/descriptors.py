"""File descriptors: enough for every connection, and some for everything else."""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from app.transport.door import NUM_RESERVED

logger = logging.getLogger(__name__)

BACKLOG = 256
"""Connections that wait to be accepted; so many can come in one turn, before any can be closed."""
_NUM_OTHER = 128
"""Descriptors for the store, the model's files, the log, the loop, and what libraries open."""
_MIN_CONNECTIONS = 16
_SAY_AGAIN_S = 60.0


def reserve_descriptors(max_connections: int) -> int:
    """Raise the process's limit so that all connections fit; return how many do.

    Args:
        max_connections: as many as are wanted.
    """
    if sys.platform == "win32":
        return max_connections
    import resource

    num_beside = BACKLOG + NUM_RESERVED + _NUM_OTHER
    needed = max_connections + num_beside
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return max_connections
    num_fitting = max(_MIN_CONNECTIONS, soft - num_beside)
    logger.warning(
        "this process may open %d files, so at most %d connections are served instead of %d; "
        "raise the hard limit (ulimit -Hn) to %d or set max_tcp_connections lower",
        soft,
        num_fitting,
        max_connections,
        needed,
    )
    return num_fitting


class OutOfDescriptors:
    """An exception handler of the event loop: says once a minute that accepting fails.

    asyncio's own loop tries again each second, and would log a traceback each time. uvloop says
    nothing, and closes the connections that it has no descriptor for.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
            return
        now = self._clock()
        if self._said_at is None or now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            logger.error("no file descriptor is left, so new connections have to wait: %s", error)
