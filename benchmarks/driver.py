"""Drives an engine like the server does: loads and steps it on an engine thread."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Iterable
from functools import partial

from streaming.backend import Backend
from streaming.engine.engine import Engine
from streaming.engine.engine_thread import EngineThread
from streaming.errors import EngineFailure
from streaming.log.generation import Failed, Generation
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence

NUM_PROMPT_TOKENS = 45
_RANDOMNESS = random.Random(0)


def random_prompt(vocab_size: int, num_tokens: int) -> list[int]:
    """Return `num_tokens` random token ids; every process draws the same ones."""
    return [_RANDOMNESS.randrange(5, vocab_size) for _ in range(num_tokens)]


class Driver:
    """A backend on its own engine thread, with a new engine for each measurement.

    Args:
        load: loads and returns the backend.
        beside: another driver to share the thread with. Two threads that compute slow each other
            down.
    """

    def __init__(self, load: Callable[[], Backend], *, beside: Driver | None = None) -> None:
        if beside is None:
            self._thread = EngineThread()
            self._thread.start()
        else:
            self._thread = beside._thread
        self.backend = self._thread.call(load)
        self._steps: queue.SimpleQueue[tuple[float, list[Generation]]] = queue.SimpleQueue()

    def start_engine(self) -> None:
        """Start a new engine, with an empty prefix cache."""
        self.engine = Engine(self.backend.runner)
        self._thread.drive(
            self.engine,
            on_step=lambda touched: self._steps.put((time.perf_counter(), touched)),
            on_death=lambda: self._steps.put((time.perf_counter(), [])),
        )

    def add(
        self,
        prompts: Iterable[list[int]],
        *,
        num_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> list[Sequence]:
        """Add one sequence per prompt, all before the same step, and return them."""
        sequences = [
            self._make_sequence(
                prompt_ids,
                SamplingParams(
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=num_tokens,
                    seed=0,
                    ignore_eos=True,
                ),
            )
            for prompt_ids in prompts
        ]

        def add() -> None:
            for sequence in sequences:
                self.engine.add(sequence)

        self._thread.put(add)
        return sequences

    def next_step(self) -> float:
        """Wait for a step to end, and return its end in seconds of `time.perf_counter`."""
        at, touched = self._steps.get()
        if not touched or any(isinstance(log.outcome, Failed) for log in touched):
            raise SystemExit("the engine has failed; see its log")
        return at

    def finish(self, sequences: Iterable[Sequence]) -> float:
        """Wait until all sequences have ended, and return the time by `time.perf_counter`."""
        at = time.perf_counter()
        while not all(sequence.is_ended for sequence in sequences):
            at = self.next_step()
        return at

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Cancel sequences, and wait until they have ended."""
        for sequence in sequences:
            self._thread.call(partial(self.engine.cancel, sequence.generation_id))

    def measure_throughput(
        self, *, concurrency: int, num_tokens: int, temperature: float = 0.0, top_p: float = 1.0
    ) -> float:
        """Return generated tokens per second over the whole batch, prefill included."""
        self.start_engine()
        vocab_size = self.backend.info.vocab_size
        prompts = [random_prompt(vocab_size, NUM_PROMPT_TOKENS) for _ in range(concurrency)]
        started_at = time.perf_counter()
        sequences = self.add(prompts, num_tokens=num_tokens, temperature=temperature, top_p=top_p)
        return concurrency * num_tokens / (self.finish(sequences) - started_at)

    def close(self) -> None:
        """Stop the thread and close the backend."""
        self._thread.stop(EngineFailure())
        self._thread.join(60.0)
        self.backend.runner.close()

    def _make_sequence(self, prompt_ids: list[int], params: SamplingParams) -> Sequence:
        generation = Generation(
            generation_id=str(_RANDOMNESS.random()),
            caller="benchmark",
            model=self.backend.info.model_id,
            created_at=0.0,
            submitted_at=time.monotonic(),
            prompt_tokens=len(prompt_ids),
        )
        return Sequence(
            generation=generation,
            prompt_ids=prompt_ids,
            params=params,
            eos_token_ids=frozenset(),
            decode=self.backend.tokenizer.decode,
            deadline_at=float("inf"),
        )
