"""One stream of a socket: its state, its name, and what it still has to tell."""

from __future__ import annotations

import math
from enum import StrEnum

from streaming import Generation, Queued

QUEUED_INTERVAL_S = 1.0
"""A place in the queue is told at most so often."""


class StreamState(StrEnum):
    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    STARTED = "started"
    ENDED = "ended"


class InvalidTransition(AssertionError):
    """A stream was moved along an edge that the table does not have."""


_NEXT_STATES = {
    StreamState.SUBMITTED: {StreamState.ACCEPTED, StreamState.ENDED},
    StreamState.ACCEPTED: {StreamState.STARTED, StreamState.ENDED},
    StreamState.STARTED: {StreamState.ENDED},
    StreamState.ENDED: set[StreamState](),
}


class OpenStream:
    """What the server knows of a stream, from its `generate` or `resume` to its ending.

    Args:
        stream_id: unique among the open streams of the socket.
        is_named: the client chose the id; else it learns it from `accepted`.
        return_token_ids: deltas carry token ids.
        return_logprobs: deltas carry log probabilities.
    """

    def __init__(
        self, stream_id: str, *, is_named: bool, return_token_ids: bool, return_logprobs: bool
    ) -> None:
        self.stream_id = stream_id
        self.is_named = is_named
        self.return_token_ids = return_token_ids
        self.return_logprobs = return_logprobs
        self.state = StreamState.SUBMITTED
        self.generation: Generation | None = None
        self.is_cancelled = False
        self._held_queued: Queued | None = None
        self._queued_due_at = -math.inf

    @property
    def include_empty_deltas(self) -> bool:
        return self.return_token_ids or self.return_logprobs

    @property
    def next_timeout_at(self) -> float | None:
        """When the held place in the queue may be told; None when none is held."""
        return None if self._held_queued is None else self._queued_due_at

    def hold(self, queued: Queued) -> None:
        """Take the newest place in the queue; an older one that was not told is out of date."""
        assert self.state is StreamState.ACCEPTED
        self._held_queued = queued

    def release(self, *, now: float) -> Queued | None:
        """Return the place in the queue to be told now, once."""
        if now < self._queued_due_at:
            return None
        queued, self._held_queued = self._held_queued, None
        if queued is not None:
            self._queued_due_at = now + QUEUED_INTERVAL_S
        return queued

    def move_to(self, state: StreamState) -> None:
        if state not in _NEXT_STATES[self.state]:
            raise InvalidTransition(f"{self.state} -> {state}")
        self.state = state
        self._held_queued = None
