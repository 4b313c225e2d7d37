"""The server and the garbage collector; signals of a real process are in `tests/e2e`."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import selectors
import signal
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from app.server import GC_THRESHOLDS, Server, bind, freeze_gc
from app.settings import Settings
from app.stream.frames import delta_frames
from app.websocket.protocol.frames import serialize
from streaming import AsyncEngine, Delta
from streaming.backends.scripted import scripted_backend
from tests.app.serving import make_app
from tests.support import ask, running_engine


def test_a_second_server_on_the_same_address_fails():
    """Both can bind the address, because neither listens while it loads its model."""
    app, _ = make_app(scripted_backend())
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        with pytest.raises(OSError, match="in use") as refused:
            Server(app, Settings()).run(sockets=[second])
    assert refused.value.errno == errno.EADDRINUSE


class SignalledSelector(selectors.DefaultSelector):
    """Calls `on_wait` once when the loop would wait without a timeout, and records if it woke."""

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


def test_a_second_signal_wakes_an_idle_loop() -> None:
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


@pytest.mark.parametrize("host", ["a..b", "192.0.2.1"])
def test_an_address_of_another_machine_cannot_be_bound(host: str) -> None:
    with pytest.raises(OSError, match=r"not a valid host name|assign"):
        bind(host, 0)


# Garbage collection.


class Node:
    """Part of a reference cycle, which only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


def test_freeze_gc_collects_garbage_and_skips_what_is_alive() -> None:
    kept, garbage = Node(), weakref.ref(Node())
    thresholds = gc.get_threshold()
    try:
        freeze_gc()
        assert garbage() is None
        assert all(each is not kept for each in gc.get_objects())
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == GC_THRESHOLDS
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    assert any(each is kept for each in gc.get_objects())


async def stream(engine: AsyncEngine, *, num_tokens: int) -> int:
    """Serialize the frames of one answer with log probabilities; return their length in chars."""
    generation = await engine.submit(ask(max_tokens=num_tokens, logprobs=5, ignore_eos=True))
    num_chars = 0
    with engine.subscribe(generation, include_empty_deltas=True) as reader:
        async for event in reader:
            if isinstance(event, Delta):
                for frame in delta_frames(
                    "a",
                    event,
                    return_token_ids=True,
                    return_logprobs=True,
                    token_text=engine.tokenizer.token_text,
                ):
                    num_chars += len(serialize(frame))
    assert generation.usage.completion_tokens == num_tokens
    return num_chars


@pytest.mark.slow
async def test_a_long_stream_leaves_no_object_for_each_token() -> None:
    backend = scripted_backend(lambda _: itertools.cycle(b"word "))
    growths = []
    async with running_engine(backend) as engine:
        await stream(engine, num_tokens=10)
        # More than once, because a module that another thread imports meanwhile counts, too.
        for _ in range(3):
            gc.collect()
            before = len(gc.get_objects())
            assert await stream(engine, num_tokens=2000) > 100_000
            gc.collect()
            growths.append(len(gc.get_objects()) - before)  # while the log is retained
    assert min(growths) < 200
