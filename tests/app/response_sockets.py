"""`WS /v1/responses` for tests, in process over scripted sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from app.main import make_response_service
from app.responses.service import ResponseService
from app.responses.socket import ResponsesConnection
from app.settings import Settings
from streaming import ANYONE, AsyncEngine, Backend, Generation
from streaming.backends.scripted import Gate
from tests.app.responses_conversation import Frame, text_of
from tests.app.sockets import ManualSocket
from tests.support import entered, running_engine


@dataclass(eq=False)
class Client:
    """A client made by hand, and what serves it."""

    hand: ManualSocket
    connection: ResponsesConnection
    serving: asyncio.Task[None]

    @property
    def frames(self) -> list[Frame]:
        return self.hand.frames

    def create(self, stream_id: str | None = None, **fields: Any) -> None:
        named = {} if stream_id is None else {"stream_id": stream_id}
        self.hand.say(**{"type": "response.create", "input": "hi", **named, **fields})

    def resume(self, response_id: str, **fields: Any) -> None:
        self.hand.say(type="tokenwire.response.resume", response_id=response_id, **fields)

    async def until_shown(
        self, kind: str, *, stream_id: str | None = None, count: int = 1
    ) -> Frame:
        """Wait for `count` frames of a type on a stream, and return the last one."""

        def shown() -> list[Frame]:
            return [
                frame
                for frame in self.frames
                if frame["type"] == kind and frame.get("stream_id") == stream_id
            ]

        await self.hand.until(lambda _: len(shown()) >= count)
        return shown()[count - 1]

    async def until_ended(self, *, stream_id: str | None = None, count: int = 1) -> Frame:
        return await self.until_shown("response.completed", stream_id=stream_id, count=count)

    async def until_said(self, text: str) -> None:
        await self.hand.until(lambda frames: text_of(frames).endswith(text))

    async def leave(self) -> None:
        self.hand.leave()
        await self.serving


@dataclass(eq=False)
class Rig:
    """A running engine with its responses, and the clients that are connected to it."""

    engine: AsyncEngine
    service: ResponseService
    settings: Settings
    clients: list[Client] = field(default_factory=list)

    def connect(self, *, takes: int | None = None, caller: str = ANYONE, **options: Any) -> Client:
        """Serve a new client.

        Args:
            takes: as in `ManualSocket`.
            options: of `ResponsesConnection`.
        """
        hand = ManualSocket(takes=takes)
        connection = ResponsesConnection(
            hand.websocket,
            service=self.service,
            caller=caller,
            settings=self.settings,
            **options,
        )

        async def serve() -> None:
            await hand.websocket.accept()
            await connection.run()

        self.clients.append(Client(hand, connection, asyncio.create_task(serve())))
        return self.clients[-1]

    def log_of(self, response_id: str) -> Generation:
        response = self.service.registry.find_live(response_id, caller=ANYONE)
        assert response is not None
        return response.generation


@asynccontextmanager
async def responding(
    backend: Backend, *, gate: Gate | None = None, **settings: Any
) -> AsyncIterator[Rig]:
    """Run an engine with responses; close it, and its clients, at exit.

    Args:
        gate: what holds the backend's runner back; opened at exit, so that the engine can end.
    """
    resolved = Settings(store_responses=False, **settings)
    async with running_engine(backend, resolved.to_engine_config(), gate=gate) as engine:
        rig = Rig(engine, make_response_service(resolved, engine), resolved)
        try:
            yield rig
        finally:
            if gate is not None:
                gate.open()
            for client in rig.clients:
                await client.leave()
            await engine.aclose()
            await rig.service.registry.aclose()


async def until_running(client: Client, gate: Gate, *, count: int = 1) -> str:
    """Wait until the first step of a response is held by the gate, and return its id."""
    created = await client.until_shown("response.created", count=count)
    await entered(gate)
    response_id = created["response"]["id"]
    assert isinstance(response_id, str)
    return response_id
