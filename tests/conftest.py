"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=25)


@pytest.fixture(scope="session", autouse=True)
def _data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep responses out of the user's own directory, in servers that tests start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENWIRE_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield
