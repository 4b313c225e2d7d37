"""A simulated WebSocket between a client and a server, with network latency."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.websockets import WebSocket

from tests.app.conversation import Frame
from tests.simulation.world import World


class Gone(Exception):
    """Raised at the client when the connection is lost, or closed by the server with `code`."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Wire:
    """One socket.

    Args:
        world: provides time and random numbers.
        on_sent: called with each frame that the server has sent.
    """

    def __init__(self, world: World, *, on_sent: Callable[[Frame], None]) -> None:
        rng = world.rng
        self._world = world
        self._on_sent = on_sent
        self._latency_s = rng.choice((0.0, 0.001, 0.05))
        self._max_in_flight = rng.choice((1, 2, 8, 1000))
        """Capacity in frames of the buffers between the two; frames in them count as sent."""
        self._raises_when_cut = rng.random() < 0.5
        self._to_server: deque[dict[str, Any]] = deque()
        self._to_client: deque[Frame | int] = deque()  # a close code at the end
        self._num_arrived_at_server = 0
        self._num_arrived_at_client = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._is_cut = False
        self._is_noticed = False
        self._is_closed = False
        self.received: list[Frame] = []
        self.generation_ids: dict[str, str] = {}
        """Generation id of each stream of the socket."""
        self._to_server.append({"type": "websocket.connect"})
        self._arrive_at_server()
        scope = {"type": "websocket", "path": "/v1/stream", "headers": [], "subprotocols": []}
        self.websocket = WebSocket(scope, self._receive, self._send)

    # Client side.

    def send(self, **message: Any) -> None:
        """Send a message, unless the connection is lost."""
        if self._is_cut:
            return
        self._to_server.append({"type": "websocket.receive", "text": json.dumps(message)})
        self._later(self._arrive_at_server)

    async def receive(self) -> Frame:
        """Return the next frame.

        Raises:
            Gone: the connection is lost or closed.
        """
        await self._until(lambda: self._is_cut or self._num_arrived_at_client > 0)
        if self._is_cut:
            raise Gone(None)
        self._num_arrived_at_client -= 1
        frame = self._to_client.popleft()
        self._notify()
        if isinstance(frame, int):
            self.cut(noticed_after_s=0.0)
            raise Gone(frame)
        self.received.append(frame)
        return frame

    def cut(self, *, noticed_after_s: float) -> None:
        """Lose the connection with all frames in flight; the server notices it later."""
        self._is_cut = True
        self._notify()
        asyncio.get_running_loop().call_later(noticed_after_s, self.shut)

    # Server side.

    def end(self) -> None:
        """Drop the connection after the application has returned, unless it has closed it."""
        self.shut()
        if not self._is_closed:
            self._to_client.append(1006)
            self._later(self._arrive_at_client)

    def shut(self) -> None:
        """Let the server notice that the connection is lost."""
        self._is_noticed = True
        self._notify()

    async def _receive(self) -> dict[str, Any]:
        await self._until(lambda: self._num_arrived_at_server > 0 or self._is_noticed)
        if self._num_arrived_at_server:
            self._num_arrived_at_server -= 1
            return self._to_server.popleft()
        return {"type": "websocket.disconnect", "code": 1006}

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.accept":
            return
        await self._until(lambda: len(self._to_client) < self._max_in_flight or self._is_noticed)
        if self._is_noticed:
            if self._raises_when_cut:
                raise OSError("the connection is lost")
            return
        is_close = message["type"] == "websocket.close"
        frame = message["code"] if is_close else json.loads(message["text"])
        self._to_client.append(frame)
        self._is_closed = is_close
        if not is_close:
            self._on_sent(frame)
        self._later(self._arrive_at_client)

    # Internals.

    def _later(self, arrive: Callable[[], None]) -> None:
        latency_s = self._latency_s * self._world.rng.random()
        asyncio.get_running_loop().call_later(latency_s, arrive)

    def _arrive_at_server(self) -> None:
        self._num_arrived_at_server += 1
        self._notify()

    def _arrive_at_client(self) -> None:
        self._num_arrived_at_client += 1
        self._notify()

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
