"""Random scenarios of clients that disconnect, resume, stall and cancel, and their invariants.

Each run checks:

* The text that a client joins, over all its sockets, is the log up to its cursor.
* The frames of each socket are in order, and each stream has exactly one ending.
* A log is found while a socket reads it or has not sent all of it, and `retention_s` longer.
* A generation that no client cancels runs while it has a subscriber, and for the grace period.
* At the end there are no streams, subscribers, timers, tasks or threads left.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.app.conversation import assert_order
from tests.simulation.loop import SimulatedLoop, pause
from tests.simulation.server import GRACE_S, RETENTION_S, SimulatedServer
from tests.simulation.talk import ResponseTalk, StreamTalk, Talk
from tests.simulation.wire import Gone
from tests.simulation.world import World

ROOT = Path(__file__).parent.parent.parent
WATCHED = frozenset(
    str(ROOT / path)
    for path in (
        "streaming/engine/async_engine.py",
        "streaming/engine/engine_thread.py",
        "streaming/log/subscribers.py",
        "streaming/log/generation.py",
        "streaming/log/reader.py",
        "streaming/log/records.py",
        "streaming/log/store.py",
        "streaming/engine/watchdog.py",
        "streaming/admission/controller.py",
        "streaming/admission/worker_pool.py",
        "app/responses/service.py",
        "app/websocket/connection.py",
        "app/responses/response_reader.py",
        "app/responses/socket.py",
        "app/stream/socket.py",
    )
)
"""Files in which threads may switch between two lines: all state that threads or tasks share."""
KINDS = (StreamTalk, StreamTalk, ResponseTalk)
_DRAIN_SHARE = 0.3
_CANCEL_SHARE = 0.005
"""Probability that a client cancels, per frame that it receives."""
_MIRROR_SHARE = 0.3
"""Probability that another device resumes a new generation."""
_AGAIN_SHARE = 0.1
"""Probability that a client resumes a generation that it has completely."""


class Scenario:
    """One run.

    Args:
        seed: determines the whole run.
        kinds: protocols that a client may speak.
    """

    def __init__(self, seed: int, *, kinds: Sequence[type[Talk]] = KINDS) -> None:
        self._kinds = kinds
        self.world = World(seed, watched=WATCHED)
        self.counts: Counter[str] = Counter()
        self._rng = self.world.rng
        self._server = SimulatedServer(self.world)
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await self._server.start()
        for _ in range(self._rng.randint(1, 3)):
            kind = self._rng.choice(self._kinds)
            num_talks = self._rng.randint(1, 3)
            self._spawn([kind(self._server, self.world, self.counts) for _ in range(num_talks)])
        if self._rng.random() < _DRAIN_SHARE:
            self.counts["drains"] += 1
            await pause(self._rng.expovariate(0.3))
            await self._server.drain()
        while self._clients:
            await asyncio.gather(*self._clients)
        await self._server.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def _spawn(self, talks: Sequence[Talk]) -> None:
        client = asyncio.get_running_loop().create_task(self._client(talks))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _client(self, talks: Sequence[Talk]) -> None:
        """Run all talks to their ends, over several sockets."""
        with suppress(Gone):
            for num_drops_left in range(self._rng.randint(0, 5), -1, -1):
                await self._socket(talks, stays=not num_drops_left)
                if all(talk.is_over for talk in talks):
                    return
                away_s = self._rng.choice((0.0, 0.001, 0.5, GRACE_S, GRACE_S + RETENTION_S))
                await pause(away_s * 1.2 * self._rng.random())

    async def _socket(self, talks: Sequence[Talk], *, stays: bool) -> None:
        """Run the open talks over one socket, until it disconnects or they have ended."""
        rng = self._rng
        is_stream = talks[0].path == "/v1/stream"
        name = "id" if is_stream else "stream_id"
        wire = self._server.connect(talks[0].path)
        open_talks = {f"talk_{i}": talk for i, talk in enumerate(talks) if not talk.is_over}
        for talk_id, talk in open_talks.items():
            wire.send(**talk.open(), **{name: talk_id})
        begun: set[str] = set()
        pace_s = rng.choice((0.0, 0.0, 0.01, 1.0))
        num_frames_left = 10**9 if stays else int(rng.expovariate(1 / 20))
        drop = asyncio.get_running_loop().call_later(
            1e6 if stays else rng.expovariate(1 / rng.choice((0.01, 1.0, 5.0))),
            lambda: wire.cut(noticed_after_s=rng.choice((0.0, 0.01, 2.0)) * rng.random()),
        )
        try:
            while open_talks and num_frames_left:
                num_frames_left -= 1
                frame = await wire.receive()
                talk = open_talks[frame[name]]
                is_new = talk.log is None
                talk.take(frame)
                begun.add(frame[name])
                if talk.is_over:
                    del open_talks[frame[name]]
                    if rng.random() < _AGAIN_SHARE and talk.has_ended:
                        self._spawn([talk.again()])
                elif is_new and rng.random() < _MIRROR_SHARE:
                    self._spawn([talk.copy()])
                elif rng.random() < _CANCEL_SHARE:
                    wire.send(**talk.cancel(), **({name: frame[name]} if is_stream else {}))
                if pace_s:
                    await pause(pace_s * rng.random())
            code = None
        except Gone as gone:
            code = gone.code
        finally:
            drop.cancel()
        if code is not None:
            self.counts[f"closed {code}"] += 1
        # Streams opened just before a shutdown may be closed without an ending.
        assert code != 1001 or not begun & set(open_talks), "open streams were closed"
        wire.cut(noticed_after_s=0.0)
        for talk_id in begun & set(open_talks):
            open_talks[talk_id].left_at = self.world.time
        if is_stream:
            assert_order(wire.received, open_ids=begun & set(open_talks))


def run(seed: int, *, kinds: Sequence[type[Talk]] = KINDS) -> Scenario:
    """Run the scenario of a seed, and return it."""
    with _errors_logged() as errors:
        scenario = Scenario(seed, kinds=kinds)
        loop = SimulatedLoop(scenario.world)
        try:
            with scenario.world.watching():
                loop.run_until_complete(scenario.run())
        except BaseException as error:  # noqa: BLE001 - `close` raises it
            scenario.world.fail(error)
        finally:
            try:
                scenario.world.close()
            finally:
                for task in asyncio.all_tasks(loop):
                    task.cancel()
                loop.close()
    assert not loop.failures, loop.failures
    assert not errors, errors
    return scenario


@contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """Collect log records of errors; disable others, so that no thread waits for a logging lock."""
    errors: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(f"{record.getMessage()}: {record.exc_info}")

    handler = Collector(logging.ERROR)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    logging.root.addHandler(handler)
    try:
        yield errors
    finally:
        logging.root.removeHandler(handler)
        logging.disable(before)
