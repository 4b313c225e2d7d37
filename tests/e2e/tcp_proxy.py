"""A TCP proxy on loopback that simulates network failures. Runs in its own threads."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

_CHUNK_BYTES = 65_536


class TcpProxy:
    """Forwards bytes between its own port and a server.

    Args:
        server_url: Base URL of the server, such as `http://127.0.0.1:8000`.
    """

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def cut(self) -> None:
        """Close all connections and reject new ones until `mend`."""
        with self._lock:
            self._is_cut = True
            for link in self._links:
                link.close()
            self._links.clear()

    def mute(self) -> None:
        """Silently discard all data of the current connections; new ones work."""
        with self._lock:
            for link in self._links:
                link.is_mute = True

    def mend(self) -> None:
        """Accept connections again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Close all connections and the port, and wait for the threads to end."""
        self.cut()
        _shut(self._listener)
        for thread in self._threads:
            thread.join()

    def _start(self, target, *args) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                if self._is_cut:
                    _shut(client)
                    continue
                link = _Link(client, socket.create_connection(self._server))
                self._links.append(link)
            self._start(link.forward, link.client, link.server)
            self._start(link.forward, link.server, link.client)


class _Link:
    """A client connection and its connection to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_mute = False
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def forward(self, source: socket.socket, target: socket.socket) -> None:
        """Forward bytes in one direction until either side closes, then close both."""
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if not self.is_mute:
                    target.sendall(data)
        self.close()

    def close(self) -> None:
        _shut(self.client)
        _shut(self.server)


def _shut(connection: socket.socket) -> None:
    # Closing alone does not wake a thread blocked in recv() or accept(); a shutdown does.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
