"""Make one clear line of whatever a library raises while a model is loaded."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from streaming.errors import ModelLoadError

logger = logging.getLogger(__name__)

_MAX_CHARS = 300


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Turn any failure inside into a `ModelLoadError` that begins with `what`.

    Raises:
        ModelLoadError: something inside failed; one raised inside passes as it is.
    """
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        # Broad, because a broken file makes a library raise anything.
        logger.debug("%s", what, exc_info=True)
        raise ModelLoadError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # safetensors writes with Rust and passes the system's error on as text.
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "os error 28" in text:
        return "no space left on the disk"
    if isinstance(error, OSError) and error.strerror and not error.filename2:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = text or type(error).__name__
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."
