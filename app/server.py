"""The server process: uvicorn with a graceful drain, and the garbage collector's settings.

At shutdown the server refuses new work, lets running generations finish, and closes the sockets.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.dependencies import Services
from app.settings import Settings, is_loopback
from app.transport.config import TransportConfig
from app.transport.descriptors import DescriptorExhaustionHandler
from app.transport.http import HttpProtocol
from app.transport.listener import detect_dead_peers
from app.transport.websocket import WebSocketProtocol

logger = logging.getLogger(__name__)

_CLOSE_SOCKETS_S = 2.0
"""Time for sockets to close once their streams have ended."""
_FORCE_CLOSE_S = 1
"""Time that uvicorn waits for the remaining connections."""
_CLOSE_ENGINE_S = 10.0
"""Time for the engine's threads and the response store to close, after the sockets."""
_SECOND_SIGNAL_S = 0.8
"""Time from the second signal to the end of the process."""
SIGNALLED_TWICE = "stopped by a second signal; open streams were cut off"

GC_THRESHOLDS = (5_000, 5, 20)
"""New objects before the youngest generation is collected, then collections of each generation
before the next older one is.

A collection holds every thread, so its duration matters more than the number of collections: up to
5,000 objects take 0.6 ms, up to 30,000 take 6 ms. With Python's default of 700, 10, 10, an answer
of 8,000 tokens with log probabilities triggers full collections of 57 ms. With rarer full
collections, cycles would pile up: these thresholds keep them below 500,000 objects."""


class Server(uvicorn.Server):
    """Serves `app` until a signal or an engine failure; a second signal stops it at once.

    Args:
        app: as built by `create_app`.
        settings: addresses and limits.
        exit_within: called when the shutdown begins and again at the second signal, with the
            seconds after which to kill the process and the message to print then.

    Attributes:
        has_failed: the server stops because its engine has failed.
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
                timeout_graceful_shutdown=_FORCE_CLOSE_S,
            )
        )
        self._app = app
        self._settings = settings
        self._exit_within = exit_within
        self._forced = asyncio.Event()
        self.has_failed = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown; at the second signal, skip the drain."""
        if self.should_exit:
            self.force_exit = True
            self._exit_within(_SECOND_SIGNAL_S, SIGNALLED_TWICE)
            # A signal alone does not wake an idle asyncio loop.
            asyncio.get_running_loop().call_soon_threadsafe(self._forced.set)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; called every 100 ms."""
        self.has_failed = self.has_failed or self._services.engine.has_failed
        return await super().on_tick(counter) or self.has_failed

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the address of the chat page."""
        for given in sockets or ():
            given.listen()  # raises if another server listens already; the event loop would not
        asyncio.get_running_loop().set_exception_handler(DescriptorExhaustionHandler())
        await super().startup(sockets)
        for listener in self.servers[0].sockets:
            detect_dead_peers(
                listener,
                idle_s=self._settings.ping_interval_s,
                stall_timeout_s=self._settings.stall_timeout_s,
            )
            logger.info("the chat page is at %s", _url(listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the engine, then close all connections and the application."""
        time_s = (
            self._settings.drain_timeout_s + _CLOSE_SOCKETS_S + _FORCE_CLOSE_S + _CLOSE_ENGINE_S
        )
        self._exit_within(time_s, f"the shutdown took longer than {time_s:g} s")
        drain = asyncio.ensure_future(self._drain())
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait((drain, forced), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, forced):
            task.cancel()
        await asyncio.gather(drain, forced, return_exceptions=True)
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn skips this step then, and the cancelled application would log a traceback.
            await self.lifespan.shutdown()

    @property
    def _services(self) -> Services:
        services = self._app.state.services
        assert isinstance(services, Services)
        return services

    async def _drain(self) -> None:
        services = self._services
        logger.info(
            "shutting down: running generations have %g s to finish; a second signal stops at once",
            self._settings.drain_timeout_s,
        )
        services.connections.drain()
        await services.engine.drain(deadline_s=self._settings.drain_timeout_s)
        try:
            async with asyncio.timeout(_CLOSE_SOCKETS_S):
                await services.connections.wait_empty()
        except TimeoutError:
            logger.warning("%d sockets did not close in time", len(services.connections))


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address but does not listen yet.

    Raises:
        OSError: this machine does not have the address, or it is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except UnicodeError as error:
        raise OSError("not a valid host name") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def freeze_gc() -> None:
    """Exclude all objects alive now from later garbage collections; call it after loading.

    torch, transformers and the model are 370,000 objects that live as long as the process. A full
    collection visits each of them while it holds every thread, the event loop included: 170 ms on
    an AMD EPYC (Zen 4). With these objects frozen, it takes 0.8 ms.
    """
    gc.collect()  # garbage that is frozen would stay for ever
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    logger.debug("garbage collection skips %d objects", gc.get_freeze_count())


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown if is_loopback(host) else socket.gethostname()}:{port}"
