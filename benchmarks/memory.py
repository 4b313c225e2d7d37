"""Measures the peak memory of the process with many long sequences in the batch.

    python -m benchmarks.memory                  # 64 sequences of 1,024 tokens, prompt and answer

Most of each sequence is prompt, so that a run takes one minute instead of ten. The KV cache takes
the same memory for prompt and answer tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys

from benchmarks.driver import Driver, random_prompt
from benchmarks.machine import describe_machine
from streaming.backends import load_backend
from streaming.config import ModelConfig

_NUM_ANSWER_TOKENS = 64


def peak_bytes() -> int:
    """Return the peak resident memory of the process in bytes (Linux: `ru_maxrss` is in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Peak memory of many long sequences.")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=1024)
    arguments = parser.parse_args()
    config = ModelConfig(
        model=arguments.model, dtype=arguments.dtype, max_num_seqs=arguments.sequences
    )
    driver = Driver(lambda: load_backend(config))
    loaded = peak_bytes()
    driver.start_engine()
    num_prompt_tokens = arguments.length - _NUM_ANSWER_TOKENS
    vocab_size = driver.backend.info.vocab_size
    prompts = [random_prompt(vocab_size, num_prompt_tokens) for _ in range(arguments.sequences)]
    driver.finish(driver.add(prompts, num_tokens=_NUM_ANSWER_TOKENS))
    figures = {"loaded_bytes": loaded, "peak_bytes": peak_bytes()}
    for name, value in figures.items():
        print(f"{name:14} {value / 2**20:10.0f} MiB", file=sys.stderr)
    result = {
        "benchmark": "memory",
        "sequences": arguments.sequences,
        "length": arguments.length,
        "preemptions": driver.engine.num_preemptions,
        **figures,
    }
    print(json.dumps({**result, "machine": describe_machine()}))
    driver.close()


if __name__ == "__main__":
    main()
