from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from app.settings import Settings
from app.transport.config import TransportConfig


class Connection:
    """A connection that must not be evicted."""

    def evict(self) -> None:
        raise AssertionError("a serving connection was evicted")


def make_config(**settings: Any) -> TransportConfig:
    return TransportConfig(FastAPI(), Settings(**settings), ws_max_size=123)


def test_uvicorn_gets_the_address_and_adds_no_log_lines_or_headers():
    config = make_config(host="127.0.0.2", port=81)
    assert (config.host, config.port, config.ws_max_size) == ("127.0.0.2", 81, 123)
    assert (config.log_config, config.access_log, config.server_header) == (None, False, False)


def test_the_limiter_has_the_limits_of_the_settings():
    config = make_config(max_tcp_connections=16, max_tcp_connections_per_address=10)
    is_reserved = []
    for host in ["10.0.0.1"] * 11 + ["10.0.0.2"] * 7:
        slot = config.connection_limiter.admit(Connection(), host)
        assert slot is not None
        slot.mark_serving()
        is_reserved.append(slot.is_reserved)
    assert is_reserved == [False] * 10 + [True] + [False] * 6 + [True]


@pytest.mark.parametrize(
    ("max_bytes_per_s", "max_message_bytes", "burst"),
    [(2**20, 1024, 2**20), (2**16, 2**20, 4 * 2**20)],
)
def test_a_connection_may_send_a_second_or_four_messages_at_once(
    max_bytes_per_s: int, max_message_bytes: int, burst: int
):
    config = make_config(max_bytes_per_s=max_bytes_per_s, max_message_bytes=max_message_bytes)
    bucket = config.make_byte_bucket()
    assert bucket.take(burst, now=0.0) == 0.0
    assert bucket.take(max_bytes_per_s, now=0.0) == pytest.approx(1.0)


def test_connections_do_not_share_a_byte_bucket():
    config = make_config(max_bytes_per_s=2**16, max_message_bytes=1024)
    assert config.make_byte_bucket().take(2**17, now=0.0) > 0
    assert config.make_byte_bucket().take(1, now=0.0) == 0
