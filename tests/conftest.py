"""Fixtures of all tests."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.watching_loop import WatchingLoop

settings.register_profile("quick", max_examples=10)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    """Run each async test on a loop that can wait for a condition."""
    return {"watching": WatchingLoop}


@pytest.fixture(scope="session", autouse=True)
def _data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep responses out of the user's own directory, in servers that tests start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENWIRE_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield
