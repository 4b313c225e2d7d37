"""What a real server's process does with signals is in `tests/e2e`."""

from __future__ import annotations

import asyncio
import errno
import selectors
import signal
from collections.abc import Callable
from typing import Any

import pytest

from app.server import Server, bind
from app.settings import Settings
from streaming.backends.scripted import scripted_backend
from tests.app.serving import make_app


def test_a_server_that_comes_second_to_its_address_is_told():
    """Both could bind it, as neither listened yet: they were loading their models."""
    app, _ = make_app(scripted_backend())
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        with pytest.raises(OSError, match="in use") as refused:
            Server(app, Settings()).run(sockets=[second])
    assert refused.value.errno == errno.EADDRINUSE


class SignalledSelector(selectors.DefaultSelector):
    """Has a signal come when the loop has nothing to do but to wait; tells if that woke it."""

    def __init__(self) -> None:
        super().__init__()
        self.on_wait: Callable[[], None] | None = None
        self.has_woken = False

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None or self.on_wait is None:
            return super().select(timeout)
        self.on_wait()
        self.on_wait = None
        ready = super().select(0)
        self.has_woken = bool(ready)
        return ready


def test_a_second_signal_wakes_a_loop_that_waits() -> None:
    selector = SignalledSelector()
    app, _ = make_app(scripted_backend())

    async def be_signalled_twice() -> None:
        server = Server(app, Settings())
        server.handle_exit(signal.SIGINT, None)
        selector.on_wait = lambda: server.handle_exit(signal.SIGINT, None)
        await server._forced.wait()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(be_signalled_twice())
    assert selector.has_woken
