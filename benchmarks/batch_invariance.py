"""What batch invariance costs: the same work with it and without, turn about in one run.

python -m benchmarks.batch_invariance             # the default model, the machine's best dtype
python -m benchmarks.batch_invariance --concurrency 1,64 --tokens 64
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from benchmarks.engine import measure_throughput
from benchmarks.machine import describe_machine
from streaming.backend import Backend
from streaming.backends import load_backend
from streaming.config import ModelConfig


def measure_ratio(
    plain: Backend, invariant: Backend, *, concurrency: int, num_tokens: int, num_rounds: int
) -> float:
    """Return the speed with invariance as a share of that without: the median over the rounds."""
    ratios = []
    for _ in range(num_rounds):
        with_it, without = (
            measure_throughput(backend, concurrency=concurrency, num_tokens=num_tokens)
            for backend in (invariant, plain)
        )
        ratios.append(with_it / without)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description="What batch invariance costs.")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--concurrency", default="1,8,64")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    plain, invariant = (
        load_backend(
            ModelConfig(
                model=arguments.model,
                dtype=arguments.dtype,
                device=arguments.device,
                batch_invariant=batch_invariant,
            )
        )
        for batch_invariant in (False, True)
    )
    for backend in (plain, invariant):
        measure_throughput(backend, concurrency=8, num_tokens=8)
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
        "dtype": plain.info.dtype,
        "device": plain.info.device,
        "attention": plain.info.attention,
        "share_of_speed": {str(n): round(share, 3) for n, share in shares.items()},
    }
    print(json.dumps({**result, "machine": describe_machine()}))
    for backend in (plain, invariant):
        backend.runner.close()


if __name__ == "__main__":
    main()
