"""A simulated server: engine, responses and sockets, without HTTP or a network."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from app.responses.registry import ResponseRegistry
from app.responses.response import LiveResponse
from app.responses.schemas.request import ResponseRequest
from app.responses.service import ResponseService
from app.responses.socket import ResponsesConnection
from app.settings import Settings
from app.stream.socket import StreamConnection
from app.websocket.connections import ConnectionRegistry
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
from tests.app.conversation import Frame
from tests.simulation.wire import Gone, Wire
from tests.simulation.world import World

GRACE_S = 3.0
RETENTION_S = 5.0
_GOODBYE_S = 2.0
"""As in `app.server`."""
_HANG_S = 6.0
"""Longest duration of a hanging step; the event loop ends logs that it holds up."""
_LAG_S = 1e-6
"""Tolerance for rounding errors in sums of times."""


class SimulatedRunner(ScriptedRunner):
    """Repeats the prompt, with steps of random duration in simulated time."""

    def __init__(self, world: World, step_s: float) -> None:
        super().__init__(repeat_prompt, max_num_seqs=world.rng.choice((1, 2, 8)))
        self._world = world
        self._step_s = step_s
        self._hang_share = world.rng.choice((0.0, 0.0, 0.02))

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        rng = self._world.rng
        hangs = rng.random() < self._hang_share
        self._world.sleep(_HANG_S * rng.random() if hangs else rng.expovariate(1 / self._step_s))
        return super().run(batch)


@dataclass(slots=True)
class Subscription:
    """A period in which a log had a subscriber; it may have been longer than recorded."""

    start: float
    end: float | None = None


class RecordingEngine(AsyncEngine):
    """Records every log and its subscriptions."""

    def __init__(self, backend: Backend, config: EngineConfig, *, world: World) -> None:
        super().__init__(backend, config, host=world)
        self._world = world
        self.logs: dict[str, Generation] = {}
        self.subscriptions: dict[str, list[Subscription]] = {}

    async def submit(self, request: GenerationRequest) -> Generation:
        generation = await super().submit(request)
        self.logs[generation.generation_id] = generation
        self.subscriptions[generation.generation_id] = []
        return generation

    @contextmanager
    def subscribe(self, generation: Generation, **options: Any) -> Iterator[Reader]:
        with super().subscribe(generation, **options) as reader:
            subscription = Subscription(self._world.time)
            self.subscriptions[generation.generation_id].append(subscription)
            try:
                yield reader
            finally:
                subscription.end = self._world.time


class RecordingService(ResponseService):
    """Records every response."""

    def __init__(self, engine: AsyncEngine, *, world: World) -> None:
        registry = ResponseRegistry(
            engine, retention_s=RETENTION_S, retention_bytes=2**30, clock=world.now
        )
        super().__init__(engine, registry)
        self.responses: dict[str, LiveResponse] = {}

    async def create(self, body: ResponseRequest, **options: Any) -> LiveResponse:
        response = await super().create(body, **options)
        self.responses[response.response_id] = response
        return response


class SimulatedServer:
    """The server that clients connect to, and the checks of its state.

    Args:
        world: provides time and random numbers.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.step_s = world.rng.choice((0.001, 0.02, 0.2))
        self._settings = Settings(
            disconnect_grace_s=GRACE_S,
            retention_s=RETENTION_S,
            stall_timeout_s=world.rng.choice((0.5, 8.0, 30.0)),
            max_messages_per_s=1e6,
            request_timeout_s=1e6,
        )
        runner = SimulatedRunner(world, self.step_s)
        backend: Backend = dataclasses.replace(scripted_backend(), runner=runner)
        config = dataclasses.replace(self._settings.to_engine_config(), close_timeout_s=1e6)
        self._engine = RecordingEngine(backend, config, world=world)
        self._service = RecordingService(self._engine, world=world)
        self._connections = ConnectionRegistry(max_connections=1000)
        self._wires: dict[Wire, None] = {}  # in order
        self._serving: set[asyncio.Task[None]] = set()
        self._sent_at: dict[str, float] = {}
        self.cancelled: set[str] = set()
        """Ids of the generations that a client has cancelled."""

    @property
    def logs(self) -> dict[str, Generation]:
        """All logs by their ids."""
        return self._engine.logs

    @property
    def responses(self) -> dict[str, LiveResponse]:
        """All responses by their ids."""
        return self._service.responses

    async def start(self) -> None:
        await self._engine.start()

    def connect(self, path: str) -> Wire:
        """Return a new socket.

        Raises:
            Gone: the server is shutting down.
        """
        if self._connections.is_draining:
            raise Gone(None)
        wire = Wire(self._world, on_sent=lambda frame: self._has_sent(wire, frame))
        serving = asyncio.get_running_loop().create_task(self._serve(wire, path))
        self._serving.add(serving)
        serving.add_done_callback(self._has_served)
        return wire

    async def drain(self) -> None:
        """Drain the server like `app.server`."""
        self._connections.drain()
        await self._engine.drain(deadline_s=self._world.rng.choice((0.0, 1.0, 5.0)))
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._connections.wait_empty()
        for wire in tuple(self._wires):
            wire.shut()

    async def aclose(self) -> None:
        """Close the server after all clients have left, and assert that nothing is left."""
        engine = self._engine
        await engine._idle.wait()  # open generations end after their grace period
        for wire in tuple(self._wires):
            wire.shut()
        await asyncio.gather(*self._serving)
        assert not engine._subscribers._counts
        assert not engine._subscribers.in_grace
        assert not engine._store._num_pins
        assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 0)
        assert all(log.num_subscribers == 0 for log in self.logs.values())
        await engine.aclose()
        await self._service.registry.aclose()
        assert not self._service.registry.live._num_pins
        assert not engine._engine.has_work
        for log in self.logs.values():
            self._check_end(log)

    def check_gone(self, log: Generation) -> None:
        """Assert that a log that was not found had expired."""
        assert log.outcome is not None, "an open log was not found"
        ends = [subscription.end for subscription in self._engine.subscriptions[log.generation_id]]
        assert None not in ends, "a log with a subscriber was not found"
        left_at = max((end for end in ends if end is not None), default=0.0)
        sent_at = self._sent_at.get(log.generation_id, 0.0)
        kept_s = self._world.time - max(left_at, sent_at, log.outcome.at)
        assert kept_s > RETENTION_S - _LAG_S, f"the log was gone after {kept_s:.3f} s"

    # Internals.

    async def _serve(self, wire: Wire, path: str) -> None:
        self._wires[wire] = None
        common: dict[str, Any] = {
            "caller": ANYONE,
            "settings": self._settings,
            "clock": self._world.now,
        }
        connection = (
            StreamConnection(wire.websocket, engine=self._engine, **common)
            if path == "/v1/stream"
            else ResponsesConnection(wire.websocket, service=self._service, **common)
        )
        with self._connections.register(ANYONE, connection):
            await wire.websocket.accept()
            await connection.run()
        wire.end()
        del self._wires[wire]

    def _has_served(self, serving: asyncio.Task[None]) -> None:
        if (error := serving.exception()) is not None:
            self._world.fail(error)

    def _has_sent(self, wire: Wire, frame: Frame) -> None:
        """Record the time at which a frame of a log was sent."""
        stream_id = str(frame.get("id", frame.get("stream_id")))
        if frame["type"] == "accepted":
            wire.generation_ids[stream_id] = frame["generation_id"]
        elif frame["type"] == "response.created":
            response = self.responses[frame["response"]["id"]]
            wire.generation_ids[stream_id] = response.generation.generation_id
        if (generation_id := wire.generation_ids.get(stream_id)) is not None:
            self._sent_at[generation_id] = self._world.time

    def _check_end(self, log: Generation) -> None:
        outcome = log.outcome
        assert outcome is not None
        is_cancelled = (
            isinstance(outcome, Finished) and outcome.finish_reason is FinishReason.CANCELLED
        )
        if is_cancelled and log.generation_id not in self.cancelled:
            self._check_was_alone(log.generation_id, outcome.at)

    def _check_was_alone(self, generation_id: str, ended_at: float) -> None:
        """Assert that the log had no subscriber for the length of the grace period."""
        subscriptions = self._engine.subscriptions[generation_id]
        for subscription in subscriptions:
            if subscription.end is None or subscription.end + GRACE_S > ended_at + _LAG_S:
                continue
            left_at, over_at = subscription.end, subscription.end + GRACE_S
            if not any(
                other.start < over_at and (other.end is None or other.end > left_at)
                for other in subscriptions
                if other is not subscription
            ):
                return
        raise AssertionError(f"cancelled at {ended_at:.3f}, with {subscriptions}")
