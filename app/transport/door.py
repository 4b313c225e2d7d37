"""How many connections there may be, in all and from one address, and who goes when all are taken.

A connection that its client keeps waiting (no whole request yet, or none at all) gives its place to
a new one, the longest waiting first. So clients that connect and say nothing only push out each
other. When every place is taken by a request that is being served, a few more connections are let
in to ask how the server is, and to be told that it is full.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from typing import Protocol

NUM_RESERVED = 32
"""Places beyond the limit, for health checks and refusals."""


class Guest(Protocol):
    """A connection, as the door sees it."""

    def evict(self) -> None:
        """Close at once: the place is given to another."""


class Place:
    """One connection's place; made by `Door.admit`.

    Attributes:
        is_reserved: beyond the limit: good for a health check only.
    """

    def __init__(self, door: Door, guest: Guest, address: str, *, is_reserved: bool) -> None:
        self._door = door
        self.guest = guest
        self.address = address
        self.is_reserved = is_reserved

    def wait(self) -> None:
        """Say that it is the client's turn, from now on."""
        self._door.wait(self)

    def serve(self) -> None:
        """Say that it is our turn: the place cannot be taken away."""
        self._door.serve(self)

    def leave(self) -> None:
        """Give the place back; leaving twice does nothing."""
        self._door.leave(self)


class Door:
    """Gives out places.

    Args:
        max_connections: in all.
        max_per_address: from one address, an IPv6 network of 64 bits being one; 0 is no limit.
        num_reserved: beyond `max_connections`.
    """

    def __init__(
        self, *, max_connections: int, max_per_address: int, num_reserved: int = NUM_RESERVED
    ) -> None:
        assert max_connections >= 1
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._num_reserved = num_reserved
        self._places: set[Place] = set()
        self._reserved: set[Place] = set()
        self._num_at: Counter[str] = Counter()
        # Each from the longest waiting to the latest.
        self._waiting: dict[Place, None] = {}
        self._waiting_at: defaultdict[str, dict[Place, None]] = defaultdict(dict)
        self._waiting_reserved: dict[Place, None] = {}

    def __len__(self) -> int:
        return len(self._places) + len(self._reserved)

    def admit(self, guest: Guest, host: str | None) -> Place | None:
        """Return a place for a new connection, or None if it has to be closed at once.

        Args:
            host: the peer's address; None where there is none.
        """
        address = _address_of(host)
        if self._max_per_address and self._num_at[address] >= self._max_per_address:
            has_room = self._evict_first(self._waiting_at.get(address, {}))
        else:
            has_room = len(self._places) < self._max_connections or self._evict_first(self._waiting)
        is_full = not has_room and len(self._reserved) >= self._num_reserved
        if is_full and not self._evict_first(self._waiting_reserved):
            return None
        place = Place(self, guest, address, is_reserved=not has_room)
        if has_room:
            self._places.add(place)
            self._num_at[address] += 1
        else:
            self._reserved.add(place)
        self.wait(place)
        return place

    def wait(self, place: Place) -> None:
        self.serve(place)  # to the end of the row
        if place in self._places:
            self._waiting[place] = None
            self._waiting_at[place.address][place] = None
        elif place in self._reserved:
            self._waiting_reserved[place] = None

    def serve(self, place: Place) -> None:
        self._waiting.pop(place, None)
        self._waiting_reserved.pop(place, None)
        if place.address in self._waiting_at:
            self._waiting_at[place.address].pop(place, None)
            if not self._waiting_at[place.address]:
                del self._waiting_at[place.address]

    def leave(self, place: Place) -> None:
        self.serve(place)
        self._reserved.discard(place)
        if place in self._places:
            self._places.remove(place)
            self._num_at[place.address] -= 1
            if not self._num_at[place.address]:
                del self._num_at[place.address]

    def _evict_first(self, waiting: dict[Place, None]) -> bool:
        place = next(iter(waiting), None)
        if place is None:
            return False
        self.leave(place)
        place.guest.evict()
        return True


def _address_of(host: str | None) -> str:
    """Return what counts as one address: one customer has at least 2**64 of IPv6."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address.packed, 64), strict=False))
