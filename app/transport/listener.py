"""TCP options that find out about peers that have vanished, which TCP by itself does not."""

from __future__ import annotations

import math
import socket

_NUM_PROBES = 3
_KERNEL_GRACE_S = 15.0
"""What the kernel waits beyond our own time limits, in which a client is still told why."""


def watch_peers(listener: socket.socket, *, idle_s: float, stall_timeout_s: float) -> None:
    """Have the kernel probe quiet peers, and drop those that acknowledge or read nothing.

    Linux gives accepted sockets the options of their listener. A stream of server-sent events has
    no pings: without these, a client whose machine is gone is noticed only when some megabyte that
    nobody acknowledges has filled the kernel's buffers, and after 15 more minutes of tries.

    Args:
        listener: takes connections.
        idle_s: quiet time before the first probe, and between two.
        stall_timeout_s: how long a client may read nothing; the kernel drops one whose data has
            waited longer, to be acknowledged or to fit in its window.
    """
    seconds = max(1, math.ceil(idle_s))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", seconds),
        ("TCP_KEEPINTVL", seconds),
        ("TCP_KEEPCNT", _NUM_PROBES),
        ("TCP_USER_TIMEOUT", math.ceil(1000 * (stall_timeout_s + _KERNEL_GRACE_S))),
    ):
        option = getattr(socket, name, None)  # other systems have some of them
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
