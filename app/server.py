"""uvicorn with our shutdown: refuse new work, let streams end in time, then close the sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.dependencies import Services
from app.settings import Settings, is_loopback
from app.websocket.server_protocol import WebSocketProtocol

logger = logging.getLogger(__name__)

_GOODBYE_S = 2.0
"""Time for sockets to say goodbye once their streams have ended."""
_FORCED_S = 1
"""Time that uvicorn waits for connections when everything has been said."""


class Server(uvicorn.Server):
    """Serves `app` until a signal; the first drains, the second ends at once.

    Args:
        app: as built by `create_app`.
        settings: addresses and limits.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
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
        self._forced = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            # A signal by itself does not wake asyncio's own loop, if nothing else happens on it.
            asyncio.get_running_loop().call_soon_threadsafe(self._forced.set)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for given in sockets or ():
            given.listen()  # the event loop would not tell that another server was faster
        await super().startup(sockets)
        for listener in self.servers[0].sockets:
            logger.info("the chat page is at %s", _url(listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = asyncio.ensure_future(self._drain())
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait((drain, forced), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, forced):
            task.cancel()
        await asyncio.gather(drain, forced, return_exceptions=True)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would have the application cancelled: a traceback
            await self.lifespan.shutdown()

    async def _drain(self) -> None:
        services = self._app.state.services
        assert isinstance(services, Services)
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
