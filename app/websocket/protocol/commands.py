"""What a `StreamProtocol` wants done by whoever holds the socket and the engine."""

from __future__ import annotations

from dataclasses import dataclass

from streaming import GenerationRequest


@dataclass(frozen=True, slots=True)
class StartGeneration:
    """Submit `request`, then call `receive_accepted` or `receive_refused`."""

    stream_id: str
    request: GenerationRequest
    include_empty_deltas: bool


@dataclass(frozen=True, slots=True)
class ResumeGeneration:
    """Follow a log from a cursor, then call `receive_accepted` or `receive_refused`."""

    stream_id: str
    generation_id: str
    after: int
    include_empty_deltas: bool


@dataclass(frozen=True, slots=True)
class CancelGeneration:
    """Cancel the generation that the open stream follows."""

    stream_id: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket (RFC 6455 §7.4.1) once all frames have been sent."""

    code: int
    reason: str


Command = StartGeneration | ResumeGeneration | CancelGeneration | Close
