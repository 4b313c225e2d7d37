"""The streams of one socket: state of an open stream, and the ids of recently ended ones."""

from __future__ import annotations

import math
from collections import OrderedDict
from enum import StrEnum

from streaming import Generation, Queued

QUEUED_INTERVAL_S = 1.0
"""Minimum time between two `queued` frames of a stream."""


class StreamState(StrEnum):
    """States of a stream, from the client's message to the last frame."""

    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    STARTED = "started"
    ENDED = "ended"


class InvalidTransition(AssertionError):
    """Raised for a state change that is not in the transition table."""


_NEXT_STATES = {
    StreamState.SUBMITTED: {StreamState.ACCEPTED, StreamState.ENDED},
    StreamState.ACCEPTED: {StreamState.STARTED, StreamState.ENDED},
    StreamState.STARTED: {StreamState.ENDED},
    StreamState.ENDED: set[StreamState](),
}


class OpenStream:
    """State of one stream, from its `generate` or `resume` to its last frame.

    Args:
        stream_id: unique among the open streams of the socket.
        has_client_id: the client chose the id; otherwise it learns the id from `accepted`.
        return_token_ids: deltas carry token ids.
        return_logprobs: deltas carry log probabilities.
    """

    def __init__(
        self, stream_id: str, *, has_client_id: bool, return_token_ids: bool, return_logprobs: bool
    ) -> None:
        self.stream_id = stream_id
        self.has_client_id = has_client_id
        self.return_token_ids = return_token_ids
        self.return_logprobs = return_logprobs
        self.state = StreamState.SUBMITTED
        self.generation: Generation | None = None
        self.is_cancelled = False
        self._held_queued: Queued | None = None
        self._next_queued_at = -math.inf

    @property
    def include_empty_deltas(self) -> bool:
        """Whether deltas without text are sent too, because they carry token ids or logprobs."""
        return self.return_token_ids or self.return_logprobs

    @property
    def next_timeout_at(self) -> float | None:
        """When the held queue position may be sent; None if none is held."""
        return None if self._held_queued is None else self._next_queued_at

    def hold(self, queued: Queued) -> None:
        """Store the newest queue position in place of one that has not been sent."""
        assert self.state is StreamState.ACCEPTED
        self._held_queued = queued

    def release(self, *, now: float) -> Queued | None:
        """Return the held queue position, once, if `QUEUED_INTERVAL_S` has passed since the last.

        Return None if none is held or it is too early.
        """
        if now < self._next_queued_at:
            return None
        queued, self._held_queued = self._held_queued, None
        if queued is not None:
            self._next_queued_at = now + QUEUED_INTERVAL_S
        return queued

    def move_to(self, state: StreamState) -> None:
        """Change the state and drop a held queue position.

        Raises:
            InvalidTransition: the transition table has no such change.
        """
        if state not in _NEXT_STATES[self.state]:
            raise InvalidTransition(f"{self.state} -> {state}")
        self.state = state
        self._held_queued = None


class RecentIds:
    """A bounded set of ids; evicts the least recently added one.

    Args:
        max_ids: capacity.
    """

    def __init__(self, *, max_ids: int) -> None:
        self._max_ids = max_ids
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, recent_id: str) -> bool:
        return recent_id in self._ids

    def remember(self, recent_id: str) -> None:
        """Add an id, or mark it as the newest."""
        self._ids[recent_id] = None
        self._ids.move_to_end(recent_id)
        if len(self._ids) > self._max_ids:
            self._ids.popitem(last=False)
