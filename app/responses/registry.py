"""Which responses are in memory: all that are open, and the ended ones for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from app.responses.response import LiveResponse


@dataclass(frozen=True, slots=True)
class _Ended:
    response: LiveResponse
    num_bytes: int
    at: float


class ResponseRegistry:
    """Open responses, and ended ones up to an age, a number and a size; the oldest goes first.

    Args:
        retention_s: how long an ended response stays.
        max_ended: how many of them stay.
        retention_bytes: how much memory they may take together.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        retention_s: float,
        max_ended: int,
        retention_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retention_s = retention_s
        self._max_ended = max_ended
        self._retention_bytes = retention_bytes
        self._clock = clock
        self._open: dict[str, LiveResponse] = {}
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self.num_ended_bytes = 0

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_ended(self) -> int:
        return len(self._ended)

    def add(self, response: LiveResponse) -> None:
        assert response.response_id not in self._open
        self._open[response.response_id] = response

    def settle(self, response: LiveResponse) -> None:
        """Move a response that has ended to the ended ones, and drop what is too much."""
        assert response.is_ended
        if self._open.pop(response.response_id, None) is not None:
            ended = _Ended(response, response.num_bytes, self._clock())
            self._ended[response.response_id] = ended
            self.num_ended_bytes += ended.num_bytes
        self.evict()

    def find(self, response_id: str, *, owner: str) -> LiveResponse | None:
        """Return the response, if it is here and the owner's."""
        self.evict()
        response = self._open.get(response_id)
        if response is None and (ended := self._ended.get(response_id)) is not None:
            response = ended.response
        return response if response is not None and response.owner == owner else None

    def remove(self, response: LiveResponse) -> bool:
        """Forget a response, and return whether it was open: ended, but not yet settled, is."""
        self._drop(response.response_id)
        return self._open.pop(response.response_id, None) is not None

    def evict(self) -> None:
        """Drop ended responses over a limit or past their time."""
        oldest_kept_at = self._clock() - self._retention_s
        while self._ended:
            response_id, oldest = next(iter(self._ended.items()))
            is_too_much = (
                len(self._ended) > self._max_ended or self.num_ended_bytes > self._retention_bytes
            )
            if not is_too_much and oldest.at >= oldest_kept_at:
                break
            self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        ended = self._ended.pop(response_id, None)
        if ended is not None:
            self.num_ended_bytes -= ended.num_bytes
