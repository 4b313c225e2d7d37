"""Whether a response has been stored, which is decided before its end is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Keeping:
    """What has become of a response's wish to be stored.

    A client that has read the end of a response may rely on it: the response is in the store then,
    or the end says `store: false`. All readers see the same end.

    Attributes:
        is_decided: the end may be told.
        is_lost: it was to be stored, and could not be.
    """

    is_decided: bool = True
    is_lost: bool = False
