from __future__ import annotations

import socket

from app.transport.listener import detect_dead_peers

OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


def options_of(listener: socket.socket) -> list[int]:
    return [listener.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in OPTIONS]


def test_the_kernel_probes_idle_peers_and_drops_stalled_ones_after_a_grace_time() -> None:
    with socket.socket() as listener:
        detect_dead_peers(listener, idle_s=20.0, stall_timeout_s=30.0)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert options_of(listener) == [20, 20, 3, 45_000]


def test_short_times_are_rounded_up() -> None:
    with socket.socket() as listener:
        detect_dead_peers(listener, idle_s=0.1, stall_timeout_s=0.0001)
        assert options_of(listener) == [1, 1, 3, 15_001]
