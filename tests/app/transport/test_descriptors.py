from __future__ import annotations

import asyncio
import errno
import logging
import subprocess
import sys

import pytest

from app.transport.descriptors import DescriptorExhaustionHandler
from tests.support import ManualClock

# Run in a process of its own: the hard limit can only be lowered.
_RESERVE = """
import logging, resource, sys
from app.transport.descriptors import reserve_descriptors
logging.basicConfig()
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
print(reserve_descriptors(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [(1024, 4096, "1000 1416"), (2048, 4096, "1000 2048"), (256, 1024, "608 1024")],
)
def test_the_soft_limit_is_raised_as_far_as_needed(soft: int, hard: int, expected: str):
    ran = subprocess.run(
        [sys.executable, "-c", _RESERVE, str(soft), str(hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == expected
    assert ("ulimit -Hn" in ran.stderr) == (hard < 1416)


async def test_running_out_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    handle = DescriptorExhaustionHandler(clock=clock)
    loop = asyncio.get_running_loop()
    context = {"message": "socket.accept()", "exception": OSError(errno.EMFILE, "Too many")}
    with caplog.at_level(logging.ERROR):
        for _ in range(59):
            handle(loop, context)
            clock.advance(1)
        assert len(caplog.records) == 1
        clock.advance(1)
        handle(loop, context)
    assert len(caplog.records) == 2
    assert "no file descriptor is left" in caplog.text


async def test_other_errors_go_to_the_default_handler(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    DescriptorExhaustionHandler()(
        loop, {"message": "a bug", "exception": OSError(errno.EPIPE, "broken")}
    )
    assert "a bug" in caplog.text
