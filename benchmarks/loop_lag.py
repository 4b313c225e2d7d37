"""How late the event loop is while streams run flat out through the engine.

    python -m benchmarks.loop_lag                      # 64 streams, each with a reader
    python -m benchmarks.loop_lag --streams 8

Each stream has a reader that takes every delta. Meanwhile a task on the same loop asks to be woken
every few milliseconds, and how late it is woken is the lag: what `/health`, a ping or a cancel
would wait for beside its own work.
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
    """Add how late each wake-up is, until cancelled."""
    while True:
        asked_at = time.perf_counter()
        await asyncio.sleep(_PERIOD_S)
        lags_s.append(time.perf_counter() - asked_at - _PERIOD_S)


async def read(engine: AsyncEngine, generation: Generation) -> int:
    """Take every delta of one stream; return how many there were."""
    num_deltas = 0
    with engine.subscribe(generation, include_empty_deltas=True) as reader:
        async for event in reader:
            num_deltas += isinstance(event, Delta)
    return num_deltas


async def measure(engine: AsyncEngine, *, num_streams: int, num_tokens: int) -> dict[str, float]:
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
    config = ModelConfig(
        model=arguments.model, dtype=arguments.dtype, num_threads=arguments.num_threads
    )
    engine = AsyncEngine.load(lambda: load_backend(config))
    freeze_gc()  # as the server does
    await engine.start()
    try:
        await measure(engine, num_streams=2, num_tokens=4)
        return await measure(engine, num_streams=arguments.streams, num_tokens=arguments.tokens)
    finally:
        await engine.aclose()


def main() -> None:
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
