"""Measures the cost of batch invariance: the same work with and without it, alternately in one run.

python -m benchmarks.batch_invariance             # the default model, the machine's best dtype
python -m benchmarks.batch_invariance --concurrency 1,64 --tokens 64
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace

from benchmarks.driver import Driver
from benchmarks.machine import describe_machine
from streaming.backends import load_backend
from streaming.config import ModelConfig


def measure_ratio(
    plain: Driver, invariant: Driver, *, concurrency: int, num_tokens: int, num_rounds: int
) -> float:
    """Return the throughput with invariance over that without it: the median of the rounds."""
    ratios = []
    for _ in range(num_rounds):
        with_it, without = (
            driver.measure_throughput(concurrency=concurrency, num_tokens=num_tokens)
            for driver in (invariant, plain)
        )
        ratios.append(with_it / without)
    return statistics.median(ratios)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="The cost of batch invariance.")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--concurrency", default="1,8,64")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    config = ModelConfig(model=arguments.model, dtype=arguments.dtype, device=arguments.device)
    plain = Driver(lambda: load_backend(config))
    invariant = Driver(lambda: load_backend(replace(config, batch_invariant=True)), beside=plain)
    for driver in (plain, invariant):
        driver.measure_throughput(concurrency=8, num_tokens=8)
    shares = {}
    for concurrency in map(int, arguments.concurrency.split(",")):
        shares[concurrency] = measure_ratio(
            plain,
            invariant,
            concurrency=concurrency,
            num_tokens=arguments.tokens,
            num_rounds=arguments.rounds,
        )
        print(f"{concurrency:3} streams  {shares[concurrency]:6.3f} of the speed", file=sys.stderr)
    result = {
        "benchmark": "batch_invariance",
        "dtype": plain.backend.info.dtype,
        "device": plain.backend.info.device,
        "attention": plain.backend.info.attention,
        "share_of_speed": {str(n): round(share, 3) for n, share in shares.items()},
    }
    print(json.dumps({**result, "machine": describe_machine()}))
    invariant.backend.runner.close()
    plain.close()


if __name__ == "__main__":
    main()
