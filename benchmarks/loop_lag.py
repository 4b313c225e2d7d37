"""Measures the lag of the event loop while streams run at full speed.

    python -m benchmarks.loop_lag                      # 64 streams, each with a reader
    python -m benchmarks.loop_lag --streams 8

Each stream has a reader that takes every delta. A task on the same loop sleeps for two milliseconds
at a time; the lag is how late it wakes up. A `/health` request, a ping or a cancel waits that long
before its own work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time

from app.server import freeze_gc
from benchmarks.driver import NUM_PROMPT_TOKENS
from benchmarks.machine import describe_machine
from streaming import AsyncEngine, GenerationRequest, SamplingParams, TextPrompt, load_backend
from streaming.config import ModelConfig
from streaming.log.generation import Generation
from streaming.log.reader import Delta

_PERIOD_S = 0.002
_PROMPT = "word " * NUM_PROMPT_TOKENS


async def measure_lag(lags_s: list[float]) -> None:
    """Append how late each wake-up is, in seconds, until cancelled."""
    while True:
        slept_at = time.perf_counter()
        await asyncio.sleep(_PERIOD_S)
        lags_s.append(time.perf_counter() - slept_at - _PERIOD_S)


async def read(engine: AsyncEngine, generation: Generation) -> int:
    """Read one stream to its end, and return the number of deltas."""
    num_deltas = 0
    with engine.subscribe(generation, include_empty_deltas=True) as reader:
        async for event in reader:
            num_deltas += isinstance(event, Delta)
    return num_deltas


async def measure(engine: AsyncEngine, *, num_streams: int, num_tokens: int) -> dict[str, float]:
    """Return the lag in milliseconds and the throughput of `num_streams` streams."""
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    lags_s: list[float] = []
    started_at = time.perf_counter()
    prober = asyncio.ensure_future(measure_lag(lags_s))
    generations = [
        await engine.submit(
            GenerationRequest(prompt=TextPrompt(_PROMPT), params=params, caller="benchmark")
        )
        for _ in range(num_streams)
    ]
    num_deltas = sum(await asyncio.gather(*(read(engine, log) for log in generations)))
    duration_s = time.perf_counter() - started_at
    prober.cancel()
    hundredths = statistics.quantiles(lags_s, n=100)
    return {
        "lag_p50_ms": hundredths[49] * 1000,
        "lag_p99_ms": hundredths[98] * 1000,
        "lag_max_ms": max(lags_s) * 1000,
        "tokens_per_s": num_streams * num_tokens / duration_s,
        "deltas": num_deltas,
    }


async def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Load the engine, warm it up, and return its figures."""
    config = ModelConfig(
        model=arguments.model, dtype=arguments.dtype, num_threads=arguments.num_threads
    )
    engine = AsyncEngine.load(lambda: load_backend(config))
    freeze_gc()  # like the server
    await engine.start()
    try:
        await measure(engine, num_streams=2, num_tokens=4)
        return await measure(engine, num_streams=arguments.streams, num_tokens=arguments.tokens)
    finally:
        await engine.aclose()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="The event loop's lag under full load.")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--num-threads", type=int)
    arguments = parser.parse_args()
    figures = {name: round(value, 2) for name, value in asyncio.run(run(arguments)).items()}
    for name, value in figures.items():
        print(f"{name:14} {value:10.2f}", file=sys.stderr)
    print(json.dumps({"benchmark": "loop_lag", **figures, "machine": describe_machine()}))


if __name__ == "__main__":
    main()
