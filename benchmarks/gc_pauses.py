"""Measures how long the garbage collector stops all threads with many long logs in memory.

    python -m benchmarks.gc_pauses                     # 64 logs of 8,000 tokens
    python -m benchmarks.gc_pauses --streams 8

A scripted backend writes most of each log as fast as it can. For the last tokens it pauses before
each step for the time that a model would compute, and the lag of the event loop is measured.
Every log has a reader that serializes the frames that a socket would send. There are two runs: one
without log probabilities, and one with five alternatives per token. All collections are timed, and
a full one is forced at the end, when all logs have ended and are retained.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from app.server import freeze_gc
from app.stream.frames import delta_frames
from app.websocket.protocol.frames import serialize
from benchmarks.machine import describe_machine
from streaming import AsyncEngine, Delta, EngineConfig, GenerationRequest, SamplingParams
from streaming.backends.scripted import Gate, ScriptInput, scripted_backend
from streaming.log.generation import Generation
from streaming.request import TextPrompt

_TEXT = b"The quick brown fox jumps over the lazy dog. "
_NUM_ALTERNATIVES = 5
_PERIOD_S = 0.002


class Pace(Gate):
    """Lets the first steps run at once, and delays each later one.

    Args:
        num_free_steps: number of steps that run at once.
        step_s: delay of each later step, in seconds.
        on_slow: called on the engine thread at the first delayed step.
    """

    def __init__(
        self, *, num_free_steps: int, step_s: float, on_slow: Callable[[], object]
    ) -> None:
        super().__init__()
        self._num_free_steps = num_free_steps
        self._step_s = step_s
        self._on_slow = on_slow

    def wait(self) -> None:
        """Block until the next step may run."""
        self._num_free_steps -= 1
        if self._num_free_steps == -1:
            self._on_slow()
        if self._num_free_steps < 0:
            time.sleep(self._step_s)


@contextmanager
def timed_collections() -> Iterator[list[list[float]]]:
    """Yield lists of collection times in seconds, one list per generation, while the block runs.

    Measures CPU time, so that other processes on a busy machine do not count.
    """
    durations_s: list[list[float]] = [[], [], []]
    started_at = 0.0

    def on_collection(phase: str, info: dict[str, int]) -> None:
        nonlocal started_at
        if phase == "start":
            started_at = time.thread_time()
        else:
            durations_s[info["generation"]].append(time.thread_time() - started_at)

    gc.callbacks.append(on_collection)
    try:
        yield durations_s
    finally:
        gc.callbacks.remove(on_collection)


def script(_: ScriptInput) -> Iterable[int]:
    """Return an endless text, as token ids."""
    return itertools.cycle(_TEXT)


async def read(engine: AsyncEngine, generation: Generation, *, has_logprobs: bool) -> int:
    """Serialize the frames of one stream, and return their number of characters."""
    num_chars = 0
    with engine.subscribe(generation, include_empty_deltas=has_logprobs) as reader:
        async for event in reader:
            if isinstance(event, Delta):
                for frame in delta_frames(
                    generation.generation_id,
                    event,
                    return_token_ids=has_logprobs,
                    return_logprobs=has_logprobs,
                    token_text=engine.tokenizer.token_text,
                ):
                    num_chars += len(serialize(frame))
                await asyncio.sleep(0)
    return num_chars


async def measure_lags(lags_s: list[float], own_lags_s: list[float]) -> None:
    """Append how late each wake-up is, in seconds, until cancelled.

    Args:
        lags_s: gets every lag.
        own_lags_s: gets every lag, limited to the CPU time that this process used meanwhile. On a
            busy machine, this is the part that the process itself can cause.
    """
    while True:
        slept_at, cpu_before = time.perf_counter(), time.process_time()
        await asyncio.sleep(_PERIOD_S)
        lag_s = time.perf_counter() - slept_at - _PERIOD_S
        lags_s.append(lag_s)
        own_lags_s.append(min(lag_s, time.process_time() - cpu_before))


def percentiles_ms(name: str, values_s: list[float]) -> dict[str, float]:
    """Return p50, p99 and maximum of `values_s` in milliseconds, with `name` as prefix."""
    hundredths = statistics.quantiles(values_s, n=100)
    return {
        f"{name}_p50_ms": hundredths[49] * 1000,
        f"{name}_p99_ms": hundredths[98] * 1000,
        f"{name}_max_ms": max(values_s) * 1000,
    }


async def measure(arguments: argparse.Namespace, *, logprobs: int | None) -> dict[str, float]:
    """Return lags and pauses in ms, and memory in bytes, of one run."""
    params = SamplingParams(
        temperature=0.0, max_tokens=arguments.tokens, ignore_eos=True, logprobs=logprobs
    )
    is_slow, loop = asyncio.Event(), asyncio.get_running_loop()
    pace = Pace(
        num_free_steps=arguments.tokens - arguments.window,
        step_s=arguments.step_ms / 1000,
        on_slow=lambda: loop.call_soon_threadsafe(is_slow.set),
    )
    backend = scripted_backend(
        script, max_num_seqs=arguments.streams, max_model_len=2 * arguments.tokens, gate=pace
    )
    engine = AsyncEngine(backend, EngineConfig(retention_bytes=2**33))
    lags_s: list[float] = []
    own_lags_s: list[float] = []
    rss_before = resident_bytes()
    await engine.start()
    try:
        with timed_collections() as collections_s:
            generations = [
                await engine.submit(
                    GenerationRequest(prompt=TextPrompt("go"), params=params, caller="benchmark")
                )
                for _ in range(arguments.streams)
            ]
            readers = [
                asyncio.ensure_future(read(engine, each, has_logprobs=logprobs is not None))
                for each in generations
            ]
            await is_slow.wait()
            prober = asyncio.ensure_future(measure_lags(lags_s, own_lags_s))
            await asyncio.gather(*readers)
            prober.cancel()
            pauses_s = list(map(list, collections_s))
            num_objects = len(gc.get_objects())
            gc.collect()
        return {
            **percentiles_ms("lag", lags_s),
            **percentiles_ms("own_lag", own_lags_s),
            **{
                name: value
                for generation, durations_s in enumerate(pauses_s)
                for name, value in (
                    (f"gen{generation}_count", len(durations_s)),
                    (f"gen{generation}_max_ms", max(durations_s, default=0.0) * 1000),
                    (f"gen{generation}_total_ms", sum(durations_s) * 1000),
                )
            },
            "full_collection_ms": collections_s[2][-1] * 1000,
            "tracked_objects": num_objects,
            "log_bytes": generations[0].num_bytes,
            "rss_growth_bytes": resident_bytes() - rss_before,
        }
    finally:
        await engine.aclose()


def resident_bytes() -> int:
    """Return the resident memory of the process now (Linux), or else its peak."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Pauses of the garbage collector.")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument(
        "--window",
        type=int,
        default=300,
        help="number of last tokens during which the lag is measured",
    )
    parser.add_argument("--step-ms", type=float, default=10.0)
    arguments = parser.parse_args()
    freeze_gc()  # like the server
    results = {}
    for name, logprobs in (("plain", None), ("logprobs", _NUM_ALTERNATIVES)):
        figures = asyncio.run(measure(arguments, logprobs=logprobs))
        results[name] = {each: round(value, 2) for each, value in figures.items()}
        for each, value in results[name].items():
            print(f"{name:9} {each:20} {value:16,.2f}", file=sys.stderr)
        gc.collect()
    settings = {"streams": arguments.streams, "tokens": arguments.tokens}
    print(
        json.dumps({"benchmark": "gc_pauses", **settings, **results, "machine": describe_machine()})
    )


if __name__ == "__main__":
    main()
