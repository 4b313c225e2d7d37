"""uvicorn's configuration, with the limits that all connections share."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI

from app.settings import Settings
from app.transport.connection_limiter import ConnectionLimiter
from app.transport.descriptors import BACKLOG, reserve_descriptors
from app.transport.parsing_queue import ParsingQueue
from app.transport.token_bucket import TokenBucket

_BURST_MESSAGES = 4


class TransportConfig(uvicorn.Config):
    """The configuration that uvicorn passes to `HttpProtocol` and `WebSocketProtocol`.

    Args:
        app: as built by `create_app`.
        settings: limits.
        options: other options of `uvicorn.Config`.

    Attributes:
        settings: limits.
        parsing_queue: shares parsing time between connections.
        connection_limiter: hands out connection slots.
    """

    def __init__(self, app: FastAPI, settings: Settings, **options: Any) -> None:
        super().__init__(
            app,
            host=settings.host,
            port=settings.port,
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            **options,
        )
        self.settings = settings
        self.parsing_queue = ParsingQueue()
        self.connection_limiter = ConnectionLimiter(
            max_connections=reserve_descriptors(settings.max_tcp_connections),
            max_per_address=settings.max_tcp_connections_per_address,
        )

    def make_byte_bucket(self) -> TokenBucket:
        """Return the byte limit of one connection; its burst holds 4 messages of maximum size."""
        return TokenBucket(
            per_s=self.settings.max_bytes_per_s,
            max_burst=max(
                self.settings.max_bytes_per_s, _BURST_MESSAGES * self.settings.max_message_bytes
            ),
        )
