"""Fixtures for the tests of the web layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.app.serving import live


@pytest.fixture
def live_server() -> Iterator[Callable[..., str]]:
    """A function that serves a backend with given settings and returns the address."""
    with ExitStack() as stack:
        yield lambda backend, **settings: stack.enter_context(live(backend, **settings))
