"""How old a connection may become, with the time passed in as monotonic seconds."""

from __future__ import annotations

from collections import deque
from enum import StrEnum

WARNING_S = 60.0
"""So long before its end a connection is warned, or a tenth of its life if that is less."""
GRACE_S = 60.0
"""So long may what runs go on when the connection takes no new work."""


class Stage(StrEnum):
    """What a connection comes to, in this order."""

    WARNED = "warned"
    EXPIRED = "expired"
    OVER = "over"


class ConnectionAge:
    """Tells when the stages of a connection's end are reached, each once.

    Args:
        opened_at: its beginning.
        max_s: it takes no new work after so long.
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
        """When the next stage is reached."""
        return self._ahead[0][0] if self._ahead else None

    def reached(self, *, now: float) -> list[Stage]:
        """Return the stages that have been reached since the last call."""
        stages = []
        while self._ahead and self._ahead[0][0] <= now:
            stages.append(self._ahead.popleft()[1])
        return stages
