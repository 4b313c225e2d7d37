"""Clients that drop, come back, stall and cancel, in a world drawn from a seed, and what must hold.

What holds of each run:

* The text that a client has joined, over all its sockets, is the log's up to its cursor.
* Each socket's frames come in order, and each stream has exactly one ending.
* A log that a client can still come back to is found: while a socket follows it, or has not taken
  all of it, and for `retention_s` from then on.
* A generation that no client cancelled goes on as long as somebody follows it, and for the grace.
* At the end nothing is left: streams, followers, timers, tasks, threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.connections import ConnectionRegistry
from app.settings import Settings
from app.websocket.stream import StreamConnection
from streaming import (
    ANYONE,
    AsyncEngine,
    Backend,
    EngineConfig,
    Finished,
    FinishReason,
    Generation,
    GenerationRequest,
    Reader,
)
from streaming.backend import Batch, FailedRow, SampledToken
from streaming.backends.scripted import ScriptedRunner, repeat_prompt, scripted_backend
from tests.app.conversation import Frame, assert_order
from tests.simulation.loop import SimulatedLoop, pause
from tests.simulation.wire import Gone, Wire
from tests.simulation.world import World
from tests.support import text_up_to

ROOT = Path(__file__).parent.parent.parent
WATCHED = frozenset(
    str(ROOT / path)
    for path in (
        "streaming/async_engine.py",
        "streaming/engine_thread.py",
        "streaming/followers.py",
        "streaming/generation.py",
        "streaming/reader.py",
        "streaming/store.py",
        "app/websocket/connection.py",
        "app/websocket/stream.py",
    )
)
GRACE_S = 3.0
RETENTION_S = 5.0
_TEXTS = ("The sea is blue. ", "Zwölf Boxkämpfer ", "漢字と仮名", "🙂🙃", "stop and stop, ", "a")
_EPSILON_S = 1e-6


class SimulatedRunner(ScriptedRunner):
    """Plays scripts at the pace of its world."""

    def __init__(self, world: World, step_s: float) -> None:
        super().__init__(repeat_prompt, max_num_seqs=world.rng.choice((1, 2, 8)))
        self._world = world
        self._step_s = step_s

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        self._world.sleep(self._world.rng.expovariate(1 / self._step_s))
        return super().run(batch)


@dataclass(slots=True)
class Stay:
    """A time in which somebody followed a log; it may have been longer, but was no shorter."""

    start: float
    end: float | None = None


class RecordingEngine(AsyncEngine):
    """Remembers every log, and when it was followed."""

    def __init__(self, backend: Backend, config: EngineConfig, *, world: World) -> None:
        super().__init__(backend, config, host=world)
        self._world = world
        self.logs: dict[str, Generation] = {}
        self.stays: dict[str, list[Stay]] = {}

    async def submit(self, request: GenerationRequest) -> Generation:
        generation = await super().submit(request)
        self.logs[generation.generation_id] = generation
        self.stays[generation.generation_id] = []
        return generation

    @contextmanager
    def follow(self, generation: Generation, **options: Any) -> Iterator[Reader]:
        with super().follow(generation, **options) as reader:
            stay = Stay(self._world.time)
            self.stays[generation.generation_id].append(stay)
            try:
                yield reader
            finally:
                stay.end = self._world.time


@dataclass(slots=True)
class Talk:
    """What a client knows of one generation."""

    prompt: str
    stop: list[str]
    with_token_ids: bool = False
    generation_id: str | None = None
    cursor: int = -1
    text: str = ""
    is_over: bool = False
    left_at: float | None = None


@dataclass(slots=True, eq=False)
class Session:
    """A socket, and the logs that its streams follow."""

    wire: Wire
    generation_ids: dict[str, str] = field(default_factory=dict)


class Scenario:
    """One run.

    Args:
        seed: decides everything.
    """

    def __init__(self, seed: int) -> None:
        self.world = World(seed, watched=WATCHED)
        self.rng = self.world.rng
        self.counts: Counter[str] = Counter()
        step_s = self.rng.choice((0.001, 0.02, 0.2))
        backend: Backend = dataclasses.replace(
            scripted_backend(), runner=SimulatedRunner(self.world, step_s)
        )
        self.settings = Settings(
            disconnect_grace_s=GRACE_S,
            retention_s=RETENTION_S,
            stall_timeout_s=self.rng.choice((0.5, 8.0, 30.0)),
            max_messages_per_s=1e6,
        )
        self.engine = RecordingEngine(backend, self.settings.to_engine_config(), world=self.world)
        self.registry = ConnectionRegistry(max_connections=1000)
        self.talks: list[Talk] = []
        self.sent_at: dict[str, float] = {}
        self.cancelled: set[str] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()
        self._clients: set[asyncio.Task[None]] = set()
        self._max_tokens = int(20 / step_s) if step_s > 0.1 else 600

    async def run(self) -> None:
        await self.engine.start()
        for _ in range(self.rng.randint(1, 3)):
            talks = [self._make_talk() for _ in range(self.rng.randint(1, 3))]
            self._spawn_client(talks)
        if self.rng.random() < 0.3:
            await pause(self.rng.expovariate(0.3))
            await self._drain()
        while self._clients:
            await asyncio.gather(*self._clients)
        await self._until_idle()
        assert not self.engine._followers._counts
        assert not self.engine._followers.in_grace
        assert (self.engine.stats.num_running, self.engine.stats.num_waiting) == (0, 0)
        await self.engine.aclose()
        for session in self._sessions:
            session.wire.shut()
        await asyncio.gather(*self._serving)
        assert not self.engine._engine.has_work
        assert asyncio.all_tasks() == {asyncio.current_task()}
        self._check_logs()

    # The server.

    def _connect(self) -> Session:
        if self.registry.is_draining:
            raise Gone(1001)
        session = Session(Wire(self.world, on_sent=lambda frame: self._has_sent(session, frame)))
        serving = asyncio.get_running_loop().create_task(self._serve(session))
        self._serving.add(serving)
        serving.add_done_callback(self._has_served)
        return session

    async def _serve(self, session: Session) -> None:
        self._sessions.add(session)
        connection = StreamConnection(
            session.wire.websocket,
            engine=self.engine,
            caller=ANYONE,
            settings=self.settings,
            clock=self.world.now,
        )
        with self.registry.register(connection.drain):
            await session.wire.websocket.accept()
            await connection.run()
        session.wire.end()
        self._sessions.discard(session)

    def _has_served(self, serving: asyncio.Task[None]) -> None:
        if (error := serving.exception()) is not None:
            self.world.fail(error)

    def _has_sent(self, session: Session, frame: Frame) -> None:
        if frame["type"] == "accepted":
            session.generation_ids[frame["id"]] = frame["generation_id"]
        if (generation_id := session.generation_ids.get(frame["id"])) is not None:
            self.sent_at[generation_id] = self.world.time

    async def _drain(self) -> None:
        """Shut down as the server does."""
        self.counts["drains"] += 1
        self.registry.drain()
        await self.engine.drain(deadline_s=self.rng.choice((0.0, 1.0, 5.0)))
        with suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self.registry.wait_empty()
        for session in self._sessions:
            session.wire.shut()

    async def _until_idle(self) -> None:
        """Wait until what clients have left behind has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                await self.engine._idle.wait()

    # The clients.

    def _make_talk(self) -> Talk:
        texts = self.rng.choices(_TEXTS, k=self.rng.randint(1, 30))
        prompt = "".join(texts).encode()[: self._max_tokens].decode(errors="ignore")
        stop = ["and stop, stop"] if self.rng.random() < 0.3 else []
        talk = Talk(prompt, stop, with_token_ids=self.rng.random() < 0.3)
        self.talks.append(talk)
        return talk

    def _spawn_client(self, talks: list[Talk]) -> None:
        client = asyncio.get_running_loop().create_task(self._client(talks))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _client(self, talks: list[Talk]) -> None:
        with suppress(Gone):
            for num_drops_left in range(self.rng.randint(0, 5), -1, -1):
                await self._socket(talks, stays=not num_drops_left)
                if all(talk.is_over for talk in talks):
                    return
                away_s = self.rng.choice((0.0, 0.001, 0.5, GRACE_S, GRACE_S + RETENTION_S))
                await pause(away_s * 1.2 * self.rng.random())

    async def _socket(self, talks: list[Talk], *, stays: bool) -> None:
        """Take all talks on over one socket, until it drops or they have ended."""
        session = self._connect()
        wire = session.wire
        open_talks = {}
        for number, talk in enumerate(talks):
            if not talk.is_over:
                open_talks[f"talk_{number}"] = talk
                self._open(wire, f"talk_{number}", talk)
        pace_s = self.rng.choice((0.0, 0.0, 0.01, 1.0))
        num_frames_left = 10**9 if stays else int(self.rng.expovariate(1 / 20))
        loop = asyncio.get_running_loop()
        drop = loop.call_later(
            1e9 if stays else self.rng.expovariate(1 / self.rng.choice((0.01, 1.0, 5.0))),
            lambda: wire.cut(noticed_after_s=self.rng.choice((0.0, 0.01, 2.0)) * self.rng.random()),
        )
        accepted = set()
        try:
            while open_talks and num_frames_left:
                num_frames_left -= 1
                frame = await wire.hear()
                accepted.add(frame["id"])
                talk = open_talks[frame["id"]]
                self._take(talk, frame)
                if talk.is_over:
                    del open_talks[frame["id"]]
                elif self.rng.random() < 0.005:
                    wire.say(type="cancel", id=frame["id"])
                    assert talk.generation_id is not None
                    self.cancelled.add(talk.generation_id)
                if pace_s:
                    await pause(pace_s * self.rng.random())
        except Gone as gone:
            if gone.code is not None:
                self.counts[f"closed {gone.code}"] += 1
                if gone.code == 1001:
                    # What the client has said meanwhile may have crossed the close.
                    assert not accepted & set(open_talks), "the server has closed open streams"
        finally:
            drop.cancel()
        wire.cut(noticed_after_s=0.0)
        for stream_id in accepted & set(open_talks):
            open_talks[stream_id].left_at = self.world.time
        assert_order(wire.heard, open_ids=accepted & set(open_talks))

    def _open(self, wire: Wire, stream_id: str, talk: Talk) -> None:
        options: dict[str, Any] = {"id": stream_id, "return_token_ids": talk.with_token_ids}
        if talk.generation_id is None:
            self.counts["generates"] += 1
            wire.say(
                type="generate",
                prompt=talk.prompt,
                stop=talk.stop,
                max_tokens=self._max_tokens,
                **options,
            )
        else:
            self.counts["resumes"] += 1
            wire.say(type="resume", generation_id=talk.generation_id, after=talk.cursor, **options)

    def _take(self, talk: Talk, frame: Frame) -> None:
        match frame["type"]:
            case "accepted":
                assert talk.generation_id in (None, frame["generation_id"])
                if talk.generation_id is None and self.rng.random() < 0.3:
                    talk.generation_id = frame["generation_id"]
                    self._spawn_client([self._make_mirror(talk)])
                talk.generation_id = frame["generation_id"]
            case "delta":
                assert frame["seq"] > talk.cursor
                talk.text += frame["text"]
                talk.cursor = frame["seq"]
                assert talk.text == text_up_to(self._log(talk), talk.cursor)
            case "done":
                self._end(talk, frame["seq"])
                self.counts[frame["finish_reason"]] += 1
            case "error":
                code = frame["error"]["code"]
                self.counts[code] += 1
                if "seq" in frame:
                    assert code == "shutting_down", frame
                    self._end(talk, frame["seq"])
                elif code == "generation_not_found":
                    self._check_gone(self._log(talk))
                    if talk.left_at is not None and self.world.time - talk.left_at < RETENTION_S:
                        self.counts["gone, though its client had come at once"] += 1
                else:
                    assert code == "shutting_down", frame
                talk.is_over = True

    def _make_mirror(self, talk: Talk) -> Talk:
        """Return the same talk, as another device has it that begins at its start."""
        mirror = dataclasses.replace(talk, cursor=-1, text="")
        self.talks.append(mirror)
        return mirror

    # What must hold.

    def _log(self, talk: Talk) -> Generation:
        assert talk.generation_id is not None
        return self.engine.logs[talk.generation_id]

    def _end(self, talk: Talk, seq: int) -> None:
        log = self._log(talk)
        assert talk.text == log.text
        assert seq == log.last_seq
        talk.is_over = True

    def _check_gone(self, log: Generation) -> None:
        """Assert that a log that was not found could be gone."""
        assert log.outcome is not None, "an open log was not found"
        ends = [stay.end for stay in self.engine.stays[log.generation_id]]
        left_at = max((end for end in ends if end is not None), default=0.0)
        assert None not in ends, "a followed log was not found"
        sent_at = self.sent_at.get(log.generation_id, 0.0)
        kept_s = self.world.time - max(left_at, sent_at, log.outcome.at)
        assert kept_s > RETENTION_S - _EPSILON_S, f"the log was gone after {kept_s:.3f} s"

    def _check_logs(self) -> None:
        for log in self.engine.logs.values():
            outcome = log.outcome
            assert outcome is not None
            is_cancelled = (
                isinstance(outcome, Finished) and outcome.finish_reason is FinishReason.CANCELLED
            )
            if is_cancelled and log.generation_id not in self.cancelled:
                self._check_was_alone(log.generation_id, outcome.at)

    def _check_was_alone(self, generation_id: str, ended_at: float) -> None:
        """Assert that nobody followed for as long as the grace."""
        stays = self.engine.stays[generation_id]
        for stay in stays:
            if stay.end is None or stay.end + GRACE_S > ended_at + _EPSILON_S:
                continue
            left_at, over_at = stay.end, stay.end + GRACE_S
            if not any(
                other.start < over_at and (other.end is None or other.end > left_at)
                for other in stays
                if other is not stay
            ):
                return
        raise AssertionError(f"cancelled at {ended_at:.3f}, with {stays}")


def run(seed: int) -> Scenario:
    """Run the scenario of a seed, and return it."""
    with _errors_logged() as errors:
        scenario = Scenario(seed)
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
    """Collect what is logged as an error; nothing else is formatted, so nobody waits for a lock."""
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
