"""Compares the throughput through `WS /v1/stream` with that of the engine alone.

    python -m benchmarks.socket                        # the default model, 1, 8, 32 and 64 streams
    python -m benchmarks.socket --concurrency 64 --sockets 64

Runs the same load alternately on `tokenwire serve` in a process of its own and on an engine in this
process. Prompts have 45 random tokens; decoding is greedy and ignores end tokens. Reports generated
tokens per second of the whole batch, prefill included; all figures are medians over the rounds. The
client runs in this process and shares the CPUs with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.driver import NUM_PROMPT_TOKENS, Driver, random_prompt
from benchmarks.machine import describe_machine
from benchmarks.server import Server
from streaming.backends import load_backend
from streaming.config import ModelConfig

_PATH = "/v1/stream"


async def receive_all(
    socket: ClientConnection, prompts: Sequence[Sequence[int]], num_tokens: int
) -> None:
    """Generate from all prompts at once on one socket, and receive all frames."""
    for number, prompt in enumerate(prompts):
        request = {"id": str(number), "prompt": prompt, "max_tokens": num_tokens}
        await socket.send(
            json.dumps({"type": "generate", **request, "temperature": 0, "ignore_eos": True})
        )
    num_open = len(prompts)
    while num_open:
        frame = await socket.recv(decode=False)
        if b'"type":"done"' in frame:
            num_open -= 1
            assert json.loads(frame)["usage"]["completion_tokens"] == num_tokens
        elif b'"type":"error"' in frame:
            raise SystemExit(frame.decode())


async def measure_socket(
    port: int, prompts: Sequence[list[int]], *, num_tokens: int, num_sockets: int
) -> float:
    """Return tokens per second of all streams together, spread over `num_sockets` sockets."""
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(
                connect(f"ws://127.0.0.1:{port}{_PATH}", compression=None)
            )
            for _ in range(num_sockets)
        ]
        started_at = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number, socket in enumerate(sockets):
                tasks.create_task(receive_all(socket, prompts[number::num_sockets], num_tokens))
        return len(prompts) * num_tokens / (time.perf_counter() - started_at)


def measure(
    driver: Driver,
    server: Server,
    *,
    concurrency: int,
    num_tokens: int,
    num_sockets: int,
    num_rounds: int,
) -> tuple[float, float, float]:
    """Return the medians of the engine's and the socket's tokens per second, and of their ratio."""
    rates = []
    vocab_size = driver.backend.info.vocab_size
    for number in range(num_rounds + 1):
        tokens = num_tokens if number else 4  # the first round warms both up
        prompts = [random_prompt(vocab_size, NUM_PROMPT_TOKENS) for _ in range(concurrency)]
        through_socket = asyncio.run(
            measure_socket(
                server.port, prompts, num_tokens=tokens, num_sockets=min(num_sockets, concurrency)
            )
        )
        by_engine = driver.measure_throughput(concurrency=concurrency, num_tokens=tokens)
        if number:
            rates.append((by_engine, through_socket, through_socket / by_engine))
    engine_rate, socket_rate, ratio = map(statistics.median, zip(*rates, strict=True))
    return engine_rate, socket_rate, ratio


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Throughput of the socket against the engine.")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--concurrency", default="1,8,32,64")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--sockets", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    config = ModelConfig(model=arguments.model, dtype=arguments.dtype)
    flags = [] if arguments.model is None else ["--model", arguments.model]
    driver = Driver(lambda: load_backend(config))
    figures = {}
    with Server("--dtype", arguments.dtype, *flags) as server:
        for concurrency in map(int, arguments.concurrency.split(",")):
            engine_rate, socket_rate, ratio = measure(
                driver,
                server,
                concurrency=concurrency,
                num_tokens=arguments.tokens,
                num_sockets=arguments.sockets,
                num_rounds=arguments.rounds,
            )
            figures[str(concurrency)] = {
                "engine_tokens_per_s": round(engine_rate, 1),
                "socket_tokens_per_s": round(socket_rate, 1),
                "ratio": round(ratio, 3),
            }
            print(
                f"{concurrency:3} streams  engine {engine_rate:8.1f}  socket {socket_rate:8.1f} "
                f"tokens/s  {ratio:6.3f}",
                file=sys.stderr,
            )
    result = {"benchmark": "socket", "sockets": arguments.sockets, "streams": figures}
    print(json.dumps({**result, "machine": describe_machine()}))
    driver.close()


if __name__ == "__main__":
    main()
