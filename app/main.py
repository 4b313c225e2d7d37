"""The application: everything is built in `create_app`, nothing at import."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI

from app.auth import Authenticator
from app.connections import ConnectionRegistry
from app.dependencies import Services
from app.settings import Settings
from streaming import AsyncEngine, load_backend

STATIC_DIR = Path(__file__).resolve().parent.parent / "static"


def create_app(settings: Settings, engine: AsyncEngine | None = None) -> FastAPI:
    """Build the application.

    Args:
        engine: serves the requests; without one, the model of the settings is loaded at start.
            It is started with the application and closed with it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served = engine
        if served is None:
            backend = await asyncio.to_thread(load_backend, settings.to_model_config())
            served = AsyncEngine(backend, settings.to_engine_config())
        app.state.services = Services(
            settings=settings,
            engine=served,
            authenticator=Authenticator(key.get_secret_value() for key in settings.api_keys),
            connections=ConnectionRegistry(max_connections=settings.max_connections),
            started_at=time.monotonic(),
        )
        await served.start()
        try:
            yield
        finally:
            await served.aclose()

    return FastAPI(
        title="Tokenwire",
        version=version("tokenwire"),
        summary="A language model whose tokens stream over WebSockets that survive a dropped line.",
        lifespan=lifespan,
    )
