"""Probes a server and measures its resource use before, during and after an attack."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.attacker import Address
from tests.e2e.server_process import ServerProcess

NUM_PROBES = 20
_TIMEOUT_S = 20.0
"""Far longer than a probe takes on a server that is not blocked."""
_MAX_GROWTH_BYTES = 64 * 2**20
_SPARE_DESCRIPTORS = 4
"""Descriptors that a server may open once, later; an attack that leaks leaves tens."""


@dataclass(frozen=True, slots=True)
class Use:
    """The resources of an idle server."""

    num_descriptors: int
    num_threads: int
    num_bytes: int


class Watch:
    """Observes one server from outside."""

    def __init__(self, server: ServerProcess) -> None:
        parts = urlsplit(server.url)
        assert parts.port is not None
        self.address: Address = ("127.0.0.1", parts.port)
        self.server = server
        self._process = psutil.Process(server.process.pid)

    def probe(self) -> dict[str, Any]:
        """Return the body of `/health`, requested on a new connection."""
        connection = http.client.HTTPConnection(*self.address, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/health", headers={"Connection": "close"})
            answer = connection.getresponse()
            assert answer.status == 200
            health = json.loads(answer.read())
            assert isinstance(health, dict)
            return health
        finally:
            connection.close()

    def until_answered(self) -> None:
        """Probe until one is answered; uvloop closes connections that it has no descriptor for.

        Without an answer the test runs into its time limit.
        """
        while True:
            with suppress(ConnectionError):
                self.probe()
                return

    def use(self) -> Use:
        """Return the server's resource use, once nothing is open any more."""
        while (health := self.probe())["connections"] + health["active"] + health["queued"]:
            pass
        with self._process.oneshot():
            return Use(
                self._process.num_fds(),
                self._process.num_threads(),
                self._process.memory_info().rss,
            )

    def during(self, attack: Callable[[], None], *, num_attackers: int = 1) -> None:
        """Repeat the attack until the server has answered all probes."""
        has_ended = threading.Event()
        num_rounds = [0] * num_attackers
        failures: list[Exception] = []

        def run(number: int) -> None:
            try:
                while not (num_rounds[number] and has_ended.is_set()):
                    attack()
                    num_rounds[number] += 1
            except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
                failures.append(error)

        threads = [threading.Thread(target=run, args=(each,)) for each in range(num_attackers)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(NUM_PROBES):
                self.probe()
        finally:
            has_ended.set()
            for thread in threads:
                thread.join()
        assert failures == []

    def until_back_to(self, before: Use) -> None:
        """Wait until the server uses no more than before; the test's time limit applies."""
        while True:
            now = self.use()
            num_descriptors = now.num_descriptors - before.num_descriptors
            num_bytes = now.num_bytes - before.num_bytes
            if num_descriptors <= _SPARE_DESCRIPTORS and num_bytes <= _MAX_GROWTH_BYTES:
                return
