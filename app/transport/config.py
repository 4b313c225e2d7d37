"""uvicorn's configuration, and what all our connections share beside it."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI

from app.settings import Settings
from app.transport.allowance import Allowance
from app.transport.descriptors import BACKLOG, reserve_descriptors
from app.transport.door import Door
from app.transport.turns import Turns

_BURST_MESSAGES = 4


class TransportConfig(uvicorn.Config):
    """What `HttpProtocol` and `WebSocketProtocol` are given by uvicorn.

    Args:
        app: as built by `create_app`.
        settings: limits.
        options: of uvicorn.
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
        self.turns = Turns()
        self.door = Door(
            max_connections=reserve_descriptors(settings.max_tcp_connections),
            max_per_address=settings.max_tcp_connections_per_address,
        )

    def make_byte_allowance(self) -> Allowance:
        """Return what one connection may send; a few of the largest messages come at once."""
        return Allowance(
            per_s=self.settings.max_bytes_per_s,
            max_burst=max(
                self.settings.max_bytes_per_s, _BURST_MESSAGES * self.settings.max_message_bytes
            ),
        )
