"""Compares continuous batching with one `model.generate()` stream, in the same run.

    python -m benchmarks.engine                       # the default model, the machine's best dtype
    python -m benchmarks.engine --dtype bfloat16 --concurrency 1,8,32,64

The engine is driven like in the server, on the thread that has loaded the model. Prompts have 45
tokens; decoding is greedy and ignores end tokens. Reports generated tokens per second of the whole
batch, prefill included, after a warm-up. `--temperature` and `--top-p` sample the batched streams.
Then it measures what a shared prefix saves, and how long running streams wait during the prefill of
a long prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from itertools import pairwise

from benchmarks.driver import Driver, random_prompt
from benchmarks.machine import describe_machine
from streaming.backends import load_backend
from streaming.config import BackendName, ModelConfig


def measure_second_turn(driver: Driver, *, num_shared: int) -> float:
    """Return the time to first token with a cached prefix over that without it."""
    driver.start_engine()
    vocab_size = driver.backend.info.vocab_size
    shared = random_prompt(vocab_size, num_shared)
    times = []
    for _ in range(2):
        sequences = driver.add([shared + random_prompt(vocab_size, 20)], num_tokens=1)
        driver.finish(sequences)
        ttft_s = sequences[0].generation.timings.ttft_s
        assert ttft_s is not None
        times.append(ttft_s)
    cold_s, warm_s = times
    return warm_s / cold_s


def measure_interference(driver: Driver, *, num_streams: int, num_prompt_tokens: int) -> float:
    """Return the longest step during the prefill of a long prompt, over a decode-only step."""
    driver.start_engine()
    vocab_size = driver.backend.info.vocab_size
    streams = driver.add(
        [random_prompt(vocab_size, 20) for _ in range(num_streams)], num_tokens=10_000
    )
    while any(not stream.output_ids for stream in streams):
        driver.next_step()
    ends = [driver.next_step() for _ in range(13)]
    ordinary_s = statistics.median(end - start for start, end in pairwise(ends))
    [reader] = driver.add([random_prompt(vocab_size, num_prompt_tokens)], num_tokens=1)
    ends = [driver.next_step()]
    while not reader.output_ids:
        ends.append(driver.next_step())
    driver.cancel(streams)
    return max(end - start for start, end in pairwise(ends)) / ordinary_s


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Continuous batching against generate().")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--concurrency", default="1,8,32,64")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--long-prompt", type=int, default=4000)
    parser.add_argument("--shared", type=int, default=2000)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--no-native-kernels", action="store_true")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    arguments = parser.parse_args()

    def load(backend: BackendName) -> Driver:
        config = ModelConfig(
            model=arguments.model,
            dtype=arguments.dtype,
            device=arguments.device,
            backend=backend,
            batch_invariant=arguments.batch_invariant,
            native_kernels=not arguments.no_native_kernels,
        )
        return Driver(lambda: load_backend(config))

    alone = load(BackendName.GENERATE)
    alone.measure_throughput(concurrency=1, num_tokens=8)
    baseline = alone.measure_throughput(concurrency=1, num_tokens=arguments.tokens)
    alone.close()
    print(f"generate()   {baseline:8.1f} tokens/s", file=sys.stderr)

    driver = load(BackendName.BATCHED)
    throughput = {}
    for concurrency in map(int, arguments.concurrency.split(",")):
        driver.measure_throughput(concurrency=concurrency, num_tokens=2)
        rate = driver.measure_throughput(
            concurrency=concurrency,
            num_tokens=arguments.tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
        )
        throughput[concurrency] = rate
        print(
            f"{concurrency:3} streams  {rate:8.1f} tokens/s {rate / baseline:6.2f} x",
            file=sys.stderr,
        )
    second_turn = measure_second_turn(driver, num_shared=arguments.shared)
    print(f"second turn  {second_turn:8.3f} of the cold time to first token", file=sys.stderr)
    interference = measure_interference(
        driver, num_streams=8, num_prompt_tokens=arguments.long_prompt
    )
    print(f"long prompt  {interference:8.2f} ordinary steps at most", file=sys.stderr)
    info = driver.backend.info
    result = {
        "benchmark": "engine",
        "dtype": info.dtype,
        "device": info.device,
        "attention": info.attention,
        "batch_invariant": arguments.batch_invariant,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "generate_tokens_per_s": round(baseline, 1),
        "tokens_per_s": {str(n): round(rate, 1) for n, rate in throughput.items()},
        "ratio": {str(n): round(rate / baseline, 2) for n, rate in throughput.items()},
        "second_turn_share_of_cold_ttft": round(second_turn, 3),
        "longest_wait_in_steps": round(interference, 2),
    }
    print(json.dumps({**result, "machine": describe_machine()}))
    driver.close()


if __name__ == "__main__":
    main()
