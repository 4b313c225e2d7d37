"""Attacks by clients without a key on a server process.

Each attack is repeated until the server has answered `NUM_PROBES` health checks of other clients.
The fixture then waits until descriptors and memory are back to their values before the attack.
"""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.attacker import (
    PING,
    TEXT,
    RawWebSocket,
    answer_to,
    dial,
    fragments,
    frame,
    handshake,
    read_to_end,
    request,
    send_all,
)
from tests.e2e.attacks.conftest import MAX_CONNECTIONS
from tests.e2e.attacks.watch import Watch
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MEGABYTE = 2**20
HALF_HEADERS = request()[:-2]
HALF_BODY = request(
    "/v1/completions",
    "Content-Type: application/json",
    "Content-Length: 100",
    method="POST",
    body=b'{"prompt": ',
)


@contextmanager
def many(watch: Watch, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Open `count` connections that send `sent` and nothing more."""
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(dial(watch.address)))
            send_all(opened[-1], sent)
        yield opened


# HTTP.


@pytest.mark.pain(24)
def test_an_endless_header(watch: Watch) -> None:
    def attack() -> None:
        with dial(watch.address) as connection:
            send_all(connection, HALF_HEADERS + b"X: ")
            num_sent = 0
            while num_sent < 100 * MEGABYTE and send_all(connection, b"a" * 2**16):
                num_sent += 2**16
            assert num_sent < 16 * MEGABYTE  # the kernel's buffers, and some more

    watch.during(attack)
    answer = answer_to(watch.address, HALF_HEADERS + b"X: " + b"a" * 2**17)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_body_of_endless_small_chunks(watch: Watch) -> None:
    head = request(
        "/v1/completions",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        method="POST",
    )

    def attack() -> None:
        with dial(watch.address) as connection:
            send_all(connection, head)
            for _ in range(20):
                if not send_all(connection, b"1\r\n \r\n" * 10_000):
                    break
            read_to_end(connection)

    watch.during(attack, num_attackers=4)


def test_a_content_length_that_is_too_big(watch: Watch) -> None:
    asked = request(
        "/v1/completions",
        "Content-Type: application/json",
        f"Content-Length: {2**40}",
        method="POST",
    )
    watch.during(lambda: _expect(answer_to(watch.address, asked), b"413"))


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (handshake("Content-Length: 3", body=b"abc"), b"400"),
        (handshake("X: " + "a" * 9000), b"431"),
        (handshake(*["X: 1"] * 200), b"431"),
        (handshake(method="POST"), b"405"),
        (b"\x00" * 5000 + b"\r\n\r\n", b"400"),
    ],
    ids=["body", "long header", "many headers", "POST", "zeros"],
)
@pytest.mark.pain(24)
def test_a_malformed_handshake(watch: Watch, asked: bytes, status: bytes) -> None:
    with dial(watch.address) as connection:
        connection.sendall(asked)
        connection.shutdown(socket.SHUT_WR)
        _expect(read_to_end(connection), status)


def _expect(answer: bytes, status: bytes) -> None:
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:80]


# Connections.


@pytest.mark.parametrize("sent", [b"", HALF_HEADERS, HALF_BODY], ids=["silent", "headers", "body"])
@pytest.mark.pain(24)
def test_more_connections_than_the_limit(watch: Watch, sent: bytes) -> None:
    with many(watch, 3 * MAX_CONNECTIONS, sent) as opened:
        for _ in range(20):
            assert watch.probe()["status"] == "ok"
        answers = [read_to_end(each) for each in opened[-3:]]  # they time out
    expected = b"HTTP/1.1 408 " if sent else b""
    assert all(answer.startswith(expected) for answer in answers)


@pytest.mark.pain(24)
def test_every_connection_is_a_websocket(watch: Watch) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(RawWebSocket(watch.address)) for _ in range(MAX_CONNECTIONS)]
        for _ in range(20):
            assert watch.probe()["connections"] == MAX_CONNECTIONS
        _expect(answer_to(watch.address, request("/v1/models")), b"429")
        _expect(answer_to(watch.address, handshake()), b"429")
        with many(watch, MAX_CONNECTIONS, b""):
            assert watch.probe()["connections"] == MAX_CONNECTIONS
        for each in sockets:
            send_all(each.socket, frame(8))
            assert each.close_code() is not None


def test_no_descriptor_is_left(start_server: Callable[..., ServerProcess]) -> None:
    """The limit is lowered while the server runs, after it has reserved descriptors."""
    server = start_server("--backend", "scripted")
    watch = Watch(server)
    before = watch.use()
    limit = before.num_descriptors + 20
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    with many(watch, 100, b""):
        pass
    watch.until_answered()
    watch.until_back_to(before)
    for _ in range(20):
        watch.probe()
    assert "Traceback" not in server.log
    assert server.log.count("no file descriptor") <= 1


# WebSockets.


@pytest.mark.pain(24)
def test_a_message_in_fragments_of_a_byte(watch: Watch) -> None:
    flood = fragments(b'{"a": "' + b"x" * MEGABYTE + b'"}', 1)

    def attack() -> None:
        with RawWebSocket(watch.address) as attacker:
            send_all(attacker.socket, flood)
            # None: unread input made the server reset the connection.
            assert attacker.close_code() in (1008, None)

    watch.during(attack)


@pytest.mark.pain(24)
def test_empty_continuations(watch: Watch) -> None:
    flood = frame(0, is_last=False) * 20_000

    def attack() -> None:
        with RawWebSocket(watch.address) as attacker:
            send_all(attacker.socket, frame(TEXT, b"x", is_last=False))
            for _ in range(20):
                if not send_all(attacker.socket, flood):
                    return

    watch.during(attack)


@pytest.mark.pain(24)
def test_floods_of_pings_from_several_clients(watch: Watch) -> None:
    flood = frame(PING, b"x" * 125) * 5_000

    def attack() -> None:
        with RawWebSocket(watch.address) as attacker:
            for _ in range(4):  # the answers are not read
                if not send_all(attacker.socket, flood):
                    return

    watch.during(attack, num_attackers=4)


@pytest.mark.pain(24)
def test_a_flooding_client_is_closed(watch: Watch) -> None:
    with RawWebSocket(watch.address) as attacker:
        attacker.socket.settimeout(0.1)
        while send_all(attacker.socket, frame(PING) * 1000):
            pass  # until the server reads no more
        attacker.socket.settimeout(30)
        assert attacker.close_code() == 1008


# Valid but large.


@pytest.mark.pain(24)
def test_large_messages_from_several_clients(watch: Watch) -> None:
    messages = [{"role": "user", "content": "x"}] * 26_000
    large = json.dumps({"type": "generate", "messages": messages, "max_tokens": 1}).encode()
    numbers = b'{"type": "generate", "prompt": [' + b"1," * 500_000 + b"1]}"

    def attack() -> None:
        with RawWebSocket(watch.address) as attacker:
            for each in (large, numbers):
                attacker.socket.sendall(frame(TEXT, each))
            codes = [json.loads(payload)["error"]["code"] for _, payload in _take(attacker, 2)]
            assert codes == ["invalid_request", "prompt_too_long"]  # in the order of the frames

    watch.during(attack, num_attackers=3)


def _take(attacker: RawWebSocket, count: int) -> list[tuple[int, bytes]]:
    frames = attacker.frames()
    return [next(frames) for _ in range(count)]


@pytest.mark.pain(24)
def test_large_bodies_from_several_clients(watch: Watch) -> None:
    messages = [{"role": "user", "content": "x"}] * 26_000
    body = json.dumps({"messages": messages}).encode()
    asked = request(
        "/v1/chat/completions",
        "Content-Type: application/json",
        "Connection: close",
        f"Content-Length: {len(body)}",
        method="POST",
        body=body,
    )
    watch.during(lambda: _expect(answer_to(watch.address, asked), b"422"), num_attackers=3)
