"""Limits the age of a connection. Time is passed in as monotonic seconds."""

from __future__ import annotations

from collections import deque
from enum import StrEnum

WARNING_S = 60.0
"""The warning precedes the expiry by this, or by a tenth of the maximum age if that is less."""
GRACE_S = 60.0
"""After the expiry, running turns may continue for this long."""


class Stage(StrEnum):
    """The stages of a connection's end, in order: after `EXPIRED` it takes no new turns."""

    WARNED = "warned"
    EXPIRED = "expired"
    OVER = "over"


class ConnectionAge:
    """Reports each stage of a connection's end once.

    Args:
        opened_at: when the connection was opened.
        max_s: age at which it expires.
    """

    def __init__(self, *, opened_at: float, max_s: float) -> None:
        self.expires_at = opened_at + max_s
        self._ahead = deque(
            (
                (self.expires_at - min(WARNING_S, max_s / 10), Stage.WARNED),
                (self.expires_at, Stage.EXPIRED),
                (self.expires_at + GRACE_S, Stage.OVER),
            )
        )

    @property
    def next_timeout_at(self) -> float | None:
        """When the next stage is reached; None after the last."""
        return self._ahead[0][0] if self._ahead else None

    def reached(self, *, now: float) -> list[Stage]:
        """Return the stages that were reached since the last call."""
        stages = []
        while self._ahead and self._ahead[0][0] <= now:
            stages.append(self._ahead.popleft()[1])
        return stages
