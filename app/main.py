"""Builds the application; `create_app` makes every object, and importing makes none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import platformdirs
from fastapi import FastAPI

from app.asyncapi import route as asyncapi
from app.auth import Authenticator
from app.dependencies import Services
from app.http import health
from app.http.error_handlers import add_exception_handlers
from app.http.middleware import add_middleware
from app.http.page import add_pages
from app.http.request_limiter import RequestLimiter
from app.openai import chat_route as chat
from app.openai import completions_route as completions
from app.openai import models_route as models
from app.openai import tokenize_route as tokenize
from app.responses import routes as responses
from app.responses import socket_route as responses_socket
from app.responses.registry import ResponseRegistry
from app.responses.service import ResponseService
from app.responses.storage.store import ResponseStore
from app.responses.storage.store_file import StoreFile
from app.settings import Settings
from app.stream import route as stream
from app.websocket.connections import ConnectionRegistry
from streaming import AsyncEngine, Backend, load_backend

STATIC_DIR = Path(__file__).resolve().parent.parent / "static"


def load_engine(
    settings: Settings, *, on_progress: Callable[[str, float | None], None] = lambda *_: None
) -> AsyncEngine:
    """Load the model and return an engine that is not started yet.

    Args:
        settings: which model, and the engine's limits.
        on_progress: called with what is being done and the fraction done, from 0 to 1, or None if
            that is not known.

    Raises:
        ModelLoadError: the model cannot be served; the message is one line with the reason.
    """

    def load() -> Backend:
        backend = load_backend(settings.to_model_config(), on_progress=on_progress)
        if settings.model_name is None:
            return backend
        return replace(backend, info=replace(backend.info, model_id=settings.model_name))

    return AsyncEngine.load(load, settings.to_engine_config())


def make_response_store(settings: Settings) -> ResponseStore | None:
    """Return the store for ended responses, not yet open; None if they are kept in memory only."""
    if not settings.store_responses:
        return None
    directory = (
        Path(settings.data_dir).expanduser()
        if settings.data_dir is not None
        else Path(platformdirs.user_data_dir("tokenwire", appauthor=False))
    )
    return ResponseStore(
        StoreFile(directory),
        ttl_s=settings.stored_responses_ttl_s,
        max_bytes=settings.stored_responses_bytes,
    )


def make_response_service(settings: Settings, engine: AsyncEngine) -> ResponseService:
    """Return the service of `/v1/responses`; starting its registry opens the store."""
    registry = ResponseRegistry(
        engine,
        make_response_store(settings),
        retention_s=settings.retention_s,
        retention_bytes=settings.retention_bytes,
        socket_memory_bytes=settings.socket_memory_bytes,
    )
    return ResponseService(engine, registry, reasoning_dialect=settings.reasoning_events)


def create_app(settings: Settings, engine: AsyncEngine | None = None) -> FastAPI:
    """Build the application.

    Args:
        settings: checked already.
        engine: started and closed with the application; without one, the model of the settings is
            loaded when the application starts.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running_engine = (
            await asyncio.to_thread(load_engine, settings) if engine is None else engine
        )
        response_service = make_response_service(settings, running_engine)
        app.state.services = Services(
            settings=settings,
            engine=running_engine,
            authenticator=Authenticator(key.get_secret_value() for key in settings.api_keys),
            connections=ConnectionRegistry(
                max_connections=settings.max_connections,
                max_connections_per_caller=settings.caller_limits.max_connections,
            ),
            request_limiter=RequestLimiter(
                max_open_requests=settings.max_open_requests_per_caller,
                max_requests_per_s=settings.max_requests_per_s,
                # A burst may open as many generations as the caller may have.
                max_burst_requests=max(
                    settings.max_requests_per_s, settings.caller_limits.max_generations
                ),
            ),
            responses=response_service,
            started_at=time.monotonic(),
        )
        await running_engine.start()
        try:
            await response_service.registry.start()
            yield
        finally:
            await running_engine.aclose()
            await response_service.registry.aclose()

    app = FastAPI(
        title="Tokenwire",
        version=version("tokenwire"),
        summary="A language model whose tokens stream over WebSockets that survive a dropped line.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads its scripts from a CDN
        redoc_url=None,
    )
    add_exception_handlers(app)
    add_middleware(app, settings)
    for router in (
        chat.router,
        completions.router,
        responses.router,
        models.router,
        tokenize.router,
        health.router,
        asyncapi.router,
        stream.router,
        responses_socket.router,
        stream.fallback_router,
    ):
        app.include_router(router)
    add_pages(app, STATIC_DIR)
    return app
