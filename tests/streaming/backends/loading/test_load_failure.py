from __future__ import annotations

import errno
import os

import pytest

from streaming.backends.loading.load_failure import as_load_error
from streaming.errors import ModelLoadError

NO_SPACE = "no space left on the disk"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError(), "KeyError"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "f"), NO_SPACE),
        (RuntimeError("I/O error: No space left on device (os error 28)"), NO_SPACE),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied: /x"),
        (ValueError("x" * 1000), "x" * 300 + "..."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_failure_becomes_one_line(error: Exception, reason: str) -> None:
    with pytest.raises(ModelLoadError) as caught, as_load_error("it failed"):
        raise error
    assert str(caught.value) == f"it failed: {reason}"
    assert caught.value.__cause__ is error


def test_a_load_error_passes_unchanged() -> None:
    inner = ModelLoadError("inner")
    with pytest.raises(ModelLoadError) as caught, as_load_error("outer"):
        raise inner
    assert caught.value is inner


def test_a_keyboard_interrupt_passes_unchanged() -> None:
    with pytest.raises(KeyboardInterrupt), as_load_error("outer"):
        raise KeyboardInterrupt
