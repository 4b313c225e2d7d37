"""TCP options of the listening socket, to detect peers that have vanished."""

from __future__ import annotations

import math
import socket

_NUM_PROBES = 3
_KERNEL_GRACE_S = 15.0
"""Added to our own time limit, so that the server can report an error before the kernel drops."""


def detect_dead_peers(listener: socket.socket, *, idle_s: float, stall_timeout_s: float) -> None:
    """Set TCP keep-alive and user timeout, so the kernel drops peers that stop answering.

    On Linux, accepted sockets inherit these options from the listener. A stream of server-sent
    events has no pings: without these options, a client whose machine is gone is noticed only
    after unacknowledged data has filled the kernel's buffers and 15 more minutes of retries.

    Args:
        listener: the listening socket.
        idle_s: seconds without traffic before the first probe, and between two probes.
        stall_timeout_s: seconds that data may wait to be acknowledged, or for room in the client's
            window; the kernel drops the connection 15 seconds later.
    """
    interval_s = max(1, math.ceil(idle_s))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", interval_s),
        ("TCP_KEEPINTVL", interval_s),
        ("TCP_KEEPCNT", _NUM_PROBES),
        ("TCP_USER_TIMEOUT", math.ceil(1000 * (stall_timeout_s + _KERNEL_GRACE_S))),
    ):
        option = getattr(socket, name, None)  # some systems lack some of them
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
