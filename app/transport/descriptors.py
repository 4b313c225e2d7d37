"""File descriptors: reserves enough for all connections, and reports when none is left."""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from app.transport.connection_limiter import NUM_RESERVED

logger = logging.getLogger(__name__)

BACKLOG = 256
"""Length of the accept queue; the loop can accept this many before it can close any."""
_NUM_OTHER = 128
"""Descriptors for the response store, the model's files, the log, the event loop and libraries."""
_MIN_CONNECTIONS = 16
_REPORT_INTERVAL_S = 60.0


def reserve_descriptors(max_connections: int) -> int:
    """Raise the soft limit of open files for `max_connections`; return how many connections fit."""
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
        "the limit of open files is %d, so the server accepts %d connections instead of %d; raise "
        "the hard limit (ulimit -Hn) to %d or lower max_tcp_connections",
        soft,
        num_fitting,
        max_connections,
        needed,
    )
    return num_fitting


class DescriptorExhaustionHandler:
    """Event loop exception handler: logs at most once a minute that `accept` has no descriptor.

    asyncio's own loop retries every second and would log a traceback each time. uvloop closes such
    connections without a log line.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reported_at: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle the error; every other error goes to the loop's default handler."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
            return
        now = self._clock()
        if self._reported_at is None or now - self._reported_at >= _REPORT_INTERVAL_S:
            self._reported_at = now
            logger.error("no file descriptor is left, so new connections must wait: %s", error)
