from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.attacks.watch import Watch
from tests.e2e.server_process import ServerProcess

MAX_CONNECTIONS = 200


@pytest.fixture(scope="session")
def attacked_server() -> Iterator[ServerProcess]:
    """A server for all attacks, with short time limits and few connections."""
    limits = {
        "--max-tcp-connections": str(MAX_CONNECTIONS),
        "--max-tcp-connections-per-address": "0",
        "--header-timeout-s": "1",
        "--body-timeout-s": "2",
        "--max-requests-per-s": "100000",  # other tests cover the limits of a caller
        "--max-open-requests-per-caller": "100000",
    }
    flags = [part for limit in limits.items() for part in limit]
    process = ServerProcess("--backend", "scripted", *flags)
    yield process
    assert process.stop() == 0, process.log
    assert "Traceback" not in process.log
    assert "ERROR" not in process.log
    assert len(process.lines) < 300  # attacks do not flood the log


@pytest.fixture
def watch(attacked_server: ServerProcess) -> Iterator[Watch]:
    """The server under attack; after the test, its resource use must be as before."""
    watch = Watch(attacked_server)
    for _ in range(3):  # the first requests load modules, which stay loaded
        before = watch.use()
    yield watch
    watch.until_back_to(before)
