"""A network that can be cut: a TCP proxy on loopback, in threads of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

_CHUNK_BYTES = 65_536


class TcpProxy:
    """Passes bytes between its own port and a server's.

    Args:
        server_url: where the server listens, such as `http://127.0.0.1:8000`.
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
        """Break all connections, and each new one at once, until `mend`."""
        with self._lock:
            self._is_cut = True
            for link in self._links:
                link.close()
            self._links.clear()

    def mute(self) -> None:
        """Let the present connections carry nothing more, without a sign; new ones work."""
        with self._lock:
            for link in self._links:
                link.is_mute = True

    def mend(self) -> None:
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Break everything for good and end all threads."""
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
            self._start(link.carry, link.client, link.server)
            self._start(link.carry, link.server, link.client)


class _Link:
    """One connection, from its client to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_mute = False
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        """Pass bytes one way until either side ends, then end both."""
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if not self.is_mute:
                    target.sendall(data)
        self.close()

    def close(self) -> None:
        _shut(self.client)
        _shut(self.server)


def _shut(connection: socket.socket) -> None:
    # Only a shutdown wakes a thread that is in recv() or accept().
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
