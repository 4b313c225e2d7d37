"""Reports the progress bars of other libraries through `OnProgress`, and silences their output."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from streaming.backends import OnProgress


def progress_bar(
    on_progress: OnProgress,
    text: str,
    *,
    start: float = 0.0,
    end: float = 1.0,
    name: str | None = None,
) -> type[Any]:
    """Return a `tqdm` class that calls `on_progress` and prints nothing.

    Args:
        on_progress: receives `text` and the fraction done.
        text: what the bar measures.
        start: fraction of the whole task that is done when the bar is empty, 0 to 1.
        end: fraction of the whole task that is done when the bar is full, 0 to 1.
        name: the one bar that reports, in a library that names its bars, as huggingface_hub does.
    """

    class ReportingBar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # otherwise tqdm starts a thread that outlives the bar

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.is_reporting = kwargs.pop("name", None) == name
            kwargs |= {"file": io.StringIO(), "disable": False}
            super().__init__(*args, **kwargs)

        def display(self, *_: Any, **__: Any) -> None:
            if not self.is_reporting:
                return
            done = min(1.0, self.n / self.total) if self.total else None
            on_progress(text, None if done is None else start + done * (end - start))

    return ReportingBar


@contextmanager
def quiet_transformers(bar: type[Any]) -> Iterator[None]:
    """Make transformers report through `bar` and log errors only; restore both at the end."""
    from transformers.utils import logging as transformers_logging

    previous_verbosity = transformers_logging.get_verbosity()
    previous_hook = transformers_logging.set_tqdm_hook(lambda _, args, kwargs: bar(*args, **kwargs))
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous_hook)
        transformers_logging.set_verbosity(previous_verbosity)
