"""Continuous batching against one `model.generate()` stream, on the same machine in the same run.

    python -m benchmarks.engine                       # the default model, the machine's best dtype
    python -m benchmarks.engine --dtype bfloat16 --concurrency 1,8,32,64

Prompts of 45 tokens, greedy, end tokens ignored; whole-batch tokens per second, prefill included,
after a warm-up. With `--temperature` and `--top-p` the batched streams are sampled. Then: what a
shared prefix saves, and how long running streams wait while a long prompt is read.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time

from benchmarks.machine import describe_machine
from streaming.backend import Backend
from streaming.backends import load_backend
from streaming.config import BackendName, ModelConfig
from streaming.engine import Engine
from streaming.generation import Generation
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence

NUM_PROMPT_TOKENS = 45
_RANDOMNESS = random.Random(0)


def random_prompt(backend: Backend, num_tokens: int) -> list[int]:
    return [_RANDOMNESS.randrange(5, backend.info.vocab_size) for _ in range(num_tokens)]


def add_sequence(
    engine: Engine,
    backend: Backend,
    prompt_ids: list[int],
    *,
    num_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Sequence:
    generation = Generation(
        generation_id=str(_RANDOMNESS.random()),
        owner="benchmark",
        model=backend.info.model_id,
        created_at=0.0,
        submitted_at=time.monotonic(),
        prompt_tokens=len(prompt_ids),
    )
    sequence = Sequence(
        generation=generation,
        prompt_ids=prompt_ids,
        params=SamplingParams(
            temperature=temperature, top_p=top_p, max_tokens=num_tokens, seed=0, ignore_eos=True
        ),
        eos_token_ids=frozenset(),
        decode=backend.tokenizer.decode,
        deadline_at=math.inf,
    )
    engine.add(sequence)
    return sequence


def measure_throughput(
    backend: Backend, *, concurrency: int, num_tokens: int, **sampling: float
) -> float:
    """Return tokens per second over the whole batch."""
    engine = Engine(backend.runner)
    prompts = [random_prompt(backend, NUM_PROMPT_TOKENS) for _ in range(concurrency)]
    started_at = time.perf_counter()
    for prompt_ids in prompts:
        add_sequence(engine, backend, prompt_ids, num_tokens=num_tokens, **sampling)
    while engine.has_work:
        engine.step()
    return concurrency * num_tokens / (time.perf_counter() - started_at)


def measure_second_turn(backend: Backend, *, num_shared: int) -> float:
    """Return the time to first token behind a shared prefix, as a share of the cold one."""
    engine = Engine(backend.runner)
    shared = random_prompt(backend, num_shared)
    times = []
    for _ in range(2):
        prompt_ids = shared + random_prompt(backend, 20)
        sequence = add_sequence(engine, backend, prompt_ids, num_tokens=1)
        while engine.has_work:
            engine.step()
        ttft_s = sequence.generation.timings.ttft_s
        assert ttft_s is not None
        times.append(ttft_s)
    cold_s, warm_s = times
    return warm_s / cold_s


def measure_interference(backend: Backend, *, num_streams: int, num_prompt_tokens: int) -> float:
    """Return the longest wait for a token while a long prompt is read, in ordinary steps."""
    engine = Engine(backend.runner)
    streams = [
        add_sequence(engine, backend, random_prompt(backend, 20), num_tokens=10_000)
        for _ in range(num_streams)
    ]
    while any(not stream.output_ids for stream in streams):
        engine.step()
    ordinary = []
    for _ in range(12):
        started_at = time.perf_counter()
        engine.step()
        ordinary.append(time.perf_counter() - started_at)
    reader = add_sequence(engine, backend, random_prompt(backend, num_prompt_tokens), num_tokens=1)
    longest = 0.0
    while not reader.output_ids:
        started_at = time.perf_counter()
        engine.step()
        longest = max(longest, time.perf_counter() - started_at)
    for stream in streams:
        engine.cancel(stream.generation_id)
    return longest / statistics.median(ordinary)


def main() -> None:
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

    def load(backend: BackendName) -> Backend:
        return load_backend(
            ModelConfig(
                model=arguments.model,
                dtype=arguments.dtype,
                device=arguments.device,
                backend=backend,
                batch_invariant=arguments.batch_invariant,
                native_kernels=not arguments.no_native_kernels,
            )
        )

    alone = load(BackendName.GENERATE)
    measure_throughput(alone, concurrency=1, num_tokens=8)
    baseline = measure_throughput(alone, concurrency=1, num_tokens=arguments.tokens)
    alone.runner.close()
    print(f"generate()   {baseline:8.1f} tokens/s", file=sys.stderr)

    backend = load(BackendName.BATCHED)
    throughput = {}
    for concurrency in map(int, arguments.concurrency.split(",")):
        measure_throughput(backend, concurrency=concurrency, num_tokens=2)
        rate = measure_throughput(
            backend,
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
    second_turn = measure_second_turn(backend, num_shared=arguments.shared)
    print(f"second turn  {second_turn:8.3f} of the cold time to first token", file=sys.stderr)
    interference = measure_interference(
        backend, num_streams=8, num_prompt_tokens=arguments.long_prompt
    )
    print(f"long prompt  {interference:8.2f} ordinary steps at most", file=sys.stderr)
    result = {
        "benchmark": "engine",
        "dtype": backend.info.dtype,
        "device": backend.info.device,
        "attention": backend.info.attention,
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
    backend.runner.close()


if __name__ == "__main__":
    main()
