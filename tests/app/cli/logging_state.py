"""Lets a test configure logging without an effect on later tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from app.cli.process import QUIET_LOGGERS


@contextmanager
def restored_logging() -> Iterator[None]:
    """Start without handlers of the root logger; restore handlers and levels at the end."""
    root = logging.getLogger()
    libraries = [logging.getLogger(name) for name in QUIET_LOGGERS]
    handlers, levels = root.handlers[:], [logger.level for logger in (root, *libraries)]
    root.handlers.clear()  # `basicConfig` would close those that it finds
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip((root, *libraries), levels, strict=True):
            logger.setLevel(level)
