"""Clients that others wrote, against the real default model."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess
from tests.e2e.tcp_proxy import TcpProxy


@pytest.fixture(scope="package")
def model_server() -> Iterator[ServerProcess]:
    """The real default model, which answers several at once."""
    process = ServerProcess()
    yield process
    assert process.stop() == 0, process.log


@pytest.fixture
def model_proxy(model_server: ServerProcess) -> Iterator[TcpProxy]:
    """A way to it that can be cut."""
    proxy = TcpProxy(model_server.url)
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test whose client asks for any other machine: some like to tell their makers."""
    names: list[Any] = []
    look_up = socket.getaddrinfo

    def noting(host: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", noting)
    yield
    assert set(names) <= {"127.0.0.1", b"127.0.0.1"}
