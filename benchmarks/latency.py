"""Measures start-up, time to first token and socket overhead of an idle server.

    python -m benchmarks.latency

Starts a server with the default model on loopback, twice: the first start fills the caches, the
second is timed. Each `done` frame has the engine's time to first token. The client measures its own
around the socket, tokenizing included. The difference is the cost of everything but the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.machine import describe_machine
from benchmarks.server import Server

PROMPT = "The capital of France is"


async def first_token(socket: ClientConnection, num_tokens: int) -> tuple[float, float]:
    """Return the time to first token in seconds, as measured by the client and by the engine."""
    request = {"type": "generate", "prompt": PROMPT, "max_tokens": num_tokens, "ignore_eos": True}
    sent_at = time.perf_counter()
    await socket.send(json.dumps(request))
    client_s = None
    while True:
        frame: dict[str, Any] = json.loads(await socket.recv())
        if frame["type"] == "delta" and client_s is None:
            client_s = time.perf_counter() - sent_at
        if frame["type"] == "done":
            assert client_s is not None
            return client_s, frame["timings"]["ttft_s"]


async def measure_health(port: int, socket: ClientConnection, num_requests: int) -> list[float]:
    """Return the response times of `/health` in seconds, while a generation runs."""
    request = {"type": "generate", "id": "busy", "prompt": PROMPT, "max_tokens": 4000}
    await socket.send(json.dumps({**request, "ignore_eos": True}))
    while json.loads(await socket.recv())["type"] != "delta":
        pass
    times = []
    for _ in range(num_requests):
        asked_at = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        times.append(time.perf_counter() - asked_at)
        assert b'"active":1' in answer
        writer.close()
    await socket.send(json.dumps({"type": "cancel", "id": "busy"}))
    return times


async def measure(port: int, num_rounds: int) -> dict[str, float]:
    """Return the latencies of a running server in milliseconds."""
    async with connect(f"ws://127.0.0.1:{port}/v1/stream") as socket:
        await first_token(socket, 2)
        pairs = [await first_token(socket, 2) for _ in range(num_rounds)]
        health = await measure_health(port, socket, 5 * num_rounds)
    return {
        "ttft_ms": statistics.median(client for client, _ in pairs) * 1000,
        "socket_adds_ms": statistics.median(client - engine for client, engine in pairs) * 1000,
        "health_p50_ms": statistics.median(health) * 1000,
        "health_p99_ms": statistics.quantiles(health, n=100)[98] * 1000,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    for _ in range(2):
        with Server() as server:
            result = asyncio.run(measure(server.port, arguments.rounds))
    figures = {"start_s": server.start_s, **result}
    for name, value in figures.items():
        print(f"{name:16} {value:10.2f}", file=sys.stderr)
    rounded = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps({"benchmark": "latency", **rounded, "machine": describe_machine()}))


if __name__ == "__main__":
    main()
