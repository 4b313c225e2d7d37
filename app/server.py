"""uvicorn with our shutdown: refuse new work, let streams end in time, then close the sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.dependencies import Services
from app.settings import Settings, is_loopback
from app.transport.config import TransportConfig
from app.transport.descriptors import OutOfDescriptors
from app.transport.http import HttpProtocol
from app.transport.listener import watch_peers
from app.transport.websocket import WebSocketProtocol

logger = logging.getLogger(__name__)

_GOODBYE_S = 2.0
"""Time for sockets to say goodbye once their streams have ended."""
_FORCED_S = 1
"""Time that uvicorn waits for connections when everything has been said."""
_CLOSE_S = 10.0
"""Time for the engine's threads and the store to end, once the sockets are closed."""
_SECOND_SIGNAL_S = 0.8
"""Time from the second signal to the end of the process."""
SIGNALLED_TWICE = "ended by a second signal; streams were cut off"


class Server(uvicorn.Server):
    """Serves `app` until a signal or the engine's failure; the second signal ends at once.

    Args:
        app: as built by `create_app`.
        settings: addresses and limits.
        exit_within: called with the seconds in which the process has to have ended, and what to say
            if it has not; when the server begins to shut down and again at the second signal.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        *,
        exit_within: Callable[[float, str], None] = lambda *_: None,
    ) -> None:
        super().__init__(
            TransportConfig(
                app,
                settings,
                http=HttpProtocol,
                ws=WebSocketProtocol,
                ws_max_size=settings.max_message_bytes,
                ws_ping_interval=settings.ping_interval_s,
                ws_ping_timeout=settings.ping_timeout_s,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=_FORCED_S,
            )
        )
        self._app = app
        self._settings = settings
        self._exit_within = exit_within
        self._forced = asyncio.Event()
        self.has_failed = False
        """It ends because its engine has failed."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            self._exit_within(_SECOND_SIGNAL_S, SIGNALLED_TWICE)
            # A signal by itself does not wake asyncio's own loop, if nothing else happens on it.
            asyncio.get_running_loop().call_soon_threadsafe(self._forced.set)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        self.has_failed = self.has_failed or self._services.engine.has_failed
        return await super().on_tick(counter) or self.has_failed

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for given in sockets or ():
            given.listen()  # the event loop would not tell that another server was faster
        asyncio.get_running_loop().set_exception_handler(OutOfDescriptors())
        await super().startup(sockets)
        for listener in self.servers[0].sockets:
            watch_peers(
                listener,
                idle_s=self._settings.ping_interval_s,
                stall_timeout_s=self._settings.stall_timeout_s,
            )
            logger.info("the chat page is at %s", _url(listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        time_s = self._settings.drain_timeout_s + _GOODBYE_S + _FORCED_S + _CLOSE_S
        self._exit_within(time_s, f"the shutdown has not ended within {time_s:g} s")
        drain = asyncio.ensure_future(self._drain())
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait((drain, forced), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, forced):
            task.cancel()
        await asyncio.gather(drain, forced, return_exceptions=True)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would have the application cancelled: a traceback
            await self.lifespan.shutdown()

    @property
    def _services(self) -> Services:
        services = self._app.state.services
        assert isinstance(services, Services)
        return services

    async def _drain(self) -> None:
        services = self._services
        logger.info(
            "shutting down: running generations get %g s; a second signal ends them at once",
            self._settings.drain_timeout_s,
        )
        services.connections.drain()
        await services.engine.drain(deadline_s=self._settings.drain_timeout_s)
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await services.connections.wait_empty()
        except TimeoutError:
            logger.warning("%d sockets did not close in time", len(services.connections))


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not yet listening.

    Raises:
        OSError: there is no such address here, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except UnicodeError as error:
        raise OSError("there cannot be such a name") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown if is_loopback(host) else socket.gethostname()}:{port}"
