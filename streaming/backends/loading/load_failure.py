"""Turns any exception of a library into a `ModelLoadError` with a message of one line."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from streaming.errors import ModelLoadError

logger = logging.getLogger(__name__)

_MAX_CHARS = 300


@contextmanager
def as_load_error(message: str) -> Iterator[None]:
    """Raise any exception of the `with` block as a `ModelLoadError` that starts with `message`.

    Raises:
        ModelLoadError: the block failed. A `ModelLoadError` of the block is raised unchanged.
    """
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        # Catch all: on a corrupt file a library may raise anything.
        logger.debug("%s", message, exc_info=True)
        raise ModelLoadError(f"{message}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # safetensors writes from Rust and reports the error of the system as text only.
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "os error 28" in text:
        return "no space left on the disk"
    if isinstance(error, OSError) and error.strerror and not error.filename2:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = text or type(error).__name__
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."
