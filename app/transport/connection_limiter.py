"""Limits on open TCP connections, in all and from one address, with eviction of idle ones.

Every connection holds a slot. A slot is either waiting (for the client to send a whole request) or
serving. When all slots are taken, a new connection evicts the one that has waited longest, so
clients that connect and send nothing evict only each other. When every slot is serving, a few
reserved slots still admit new connections, to answer health checks and to report that the server
is full.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from typing import Protocol

NUM_RESERVED = 32
"""Slots beyond the limit, for health checks and refusals."""


class Evictable(Protocol):
    """A connection that can be closed to make room."""

    def evict(self) -> None:
        """Close at once; the slot has been given to another connection."""


class ConnectionSlot:
    """The slot of one connection, returned by `ConnectionLimiter.admit`.

    Attributes:
        connection: closed when the slot is given to another.
        address: the peer's address, as the limiter counts it.
        is_reserved: the slot is beyond the limit and may only serve health checks.
    """

    def __init__(
        self,
        limiter: ConnectionLimiter,
        connection: Evictable,
        address: str,
        *,
        is_reserved: bool,
    ) -> None:
        self._limiter = limiter
        self.connection = connection
        self.address = address
        self.is_reserved = is_reserved

    def mark_waiting(self) -> None:
        """Record that the server waits for the client from now on: the slot can be evicted."""
        self._limiter.mark_waiting(self)

    def mark_serving(self) -> None:
        """Record that the server is serving a request: the slot cannot be evicted."""
        self._limiter.mark_serving(self)

    def release(self) -> None:
        """Free the slot; a second call does nothing."""
        self._limiter.release(self)


class ConnectionLimiter:
    """Hands out connection slots.

    Args:
        max_connections: slots in all.
        max_per_address: slots for one address, where an IPv6 /64 network counts as one; 0 is no
            limit.
        num_reserved: slots beyond `max_connections`.
    """

    def __init__(
        self, *, max_connections: int, max_per_address: int, num_reserved: int = NUM_RESERVED
    ) -> None:
        assert max_connections >= 1
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._num_reserved = num_reserved
        self._slots: set[ConnectionSlot] = set()
        self._reserved: set[ConnectionSlot] = set()
        self._num_at: Counter[str] = Counter()
        # Dicts as ordered sets, from the slot that has waited longest to the newest.
        self._waiting: dict[ConnectionSlot, None] = {}
        self._waiting_at: defaultdict[str, dict[ConnectionSlot, None]] = defaultdict(dict)
        self._waiting_reserved: dict[ConnectionSlot, None] = {}

    def __len__(self) -> int:
        return len(self._slots) + len(self._reserved)

    def admit(self, connection: Evictable, host: str | None) -> ConnectionSlot | None:
        """Return a slot for a new connection, or None if it must be closed at once.

        Args:
            connection: evicted if the slot is given to another later.
            host: the peer's address; None where there is none, as on a Unix socket.
        """
        address = _counted_address(host)
        if self._max_per_address and self._num_at[address] >= self._max_per_address:
            has_room = self._evict_first(self._waiting_at.get(address, {}))
        else:
            has_room = len(self._slots) < self._max_connections or self._evict_first(self._waiting)
        is_full = not has_room and len(self._reserved) >= self._num_reserved
        if is_full and not self._evict_first(self._waiting_reserved):
            return None
        slot = ConnectionSlot(self, connection, address, is_reserved=not has_room)
        if has_room:
            self._slots.add(slot)
            self._num_at[address] += 1
        else:
            self._reserved.add(slot)
        self.mark_waiting(slot)
        return slot

    def mark_waiting(self, slot: ConnectionSlot) -> None:
        """Make the slot the last to be evicted; a slot that waits already starts again."""
        self.mark_serving(slot)
        if slot in self._slots:
            self._waiting[slot] = None
            self._waiting_at[slot.address][slot] = None
        elif slot in self._reserved:
            self._waiting_reserved[slot] = None

    def mark_serving(self, slot: ConnectionSlot) -> None:
        """Protect the slot from eviction."""
        self._waiting.pop(slot, None)
        self._waiting_reserved.pop(slot, None)
        if slot.address in self._waiting_at:
            self._waiting_at[slot.address].pop(slot, None)
            if not self._waiting_at[slot.address]:
                del self._waiting_at[slot.address]

    def release(self, slot: ConnectionSlot) -> None:
        """Free the slot; a slot that is already free stays free."""
        self.mark_serving(slot)
        self._reserved.discard(slot)
        if slot in self._slots:
            self._slots.remove(slot)
            self._num_at[slot.address] -= 1
            if not self._num_at[slot.address]:
                del self._num_at[slot.address]

    def _evict_first(self, waiting: dict[ConnectionSlot, None]) -> bool:
        slot = next(iter(waiting), None)
        if slot is None:
            return False
        self.release(slot)
        slot.connection.evict()
        return True


def _counted_address(host: str | None) -> str:
    """Return the address to count under: for IPv6 its /64 network, the least a customer gets."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address.packed, 64), strict=False))
