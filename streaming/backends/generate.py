"""The reference backend: `model.generate()` itself, for any causal language model.

One sequence runs at a time. `generate` lives on a worker thread and goes in lock-step with the
engine: `run` lets it make one token, takes that token, and leaves it waiting. The engine alone
decides when a text ends, so `generate` knows of no end token; it is stopped by `release`.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, TextIteratorStreamer

from streaming.backend import Backend, Batch, Chunk, FailedRow, SampledToken
from streaming.backends import OnProgress
from streaming.backends.load_failure import failing_as
from streaming.backends.loading import load_model
from streaming.backends.logits_processors import (
    GrammarMask,
    LogitBias,
    MinTokens,
    Penalized,
    RawDistribution,
    SomeTokenLeft,
)
from streaming.backends.penalties import Penalties
from streaming.backends.prompt_scorer import PromptScorer
from streaming.backends.row_failure import RowFailed
from streaming.backends.warm_up import warm_up
from streaming.config import ModelConfig
from streaming.errors import ModelLoadError
from streaming.sequence import Sequence

_MIN_TEMPERATURE = 1e-4
"""Lower ones choose the same tokens and overflow float32."""


class GenerateFailed(RuntimeError):
    """`model.generate()` raised, or ended before it was told to; the cause is chained."""


class GenerationStopped(Exception):
    """Unwinds `model.generate()` once nobody wants its tokens any more."""


class TokenStreamer(TextIteratorStreamer):  # type: ignore[misc]
    """Hands over each token as it comes, not words, and holds `generate` until it may go on.

    It also is what stops `generate`. A StoppingCriteria is asked before the streamer gets the
    token, so a stop that the token itself causes (a stop string, an end token) would be heard only
    after one more forward pass.
    """

    def __init__(self, raw: RawDistribution) -> None:
        super().__init__(tokenizer=None)
        self._is_prompt_next = True
        self._raw = raw
        self._outcomes: queue.SimpleQueue[SampledToken | BaseException] = queue.SimpleQueue()
        self._turns = threading.Semaphore(0)
        self._is_stopped = False

    # On the worker's thread.

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt_next:
            self._is_prompt_next = False
            return
        token_id = int(value)
        self._outcomes.put(SampledToken(token_id, self._raw.logprobs_of(token_id)))
        self._turns.acquire()
        if self._is_stopped:
            raise GenerationStopped

    def end(self) -> None:
        self.fail(GenerateFailed("generate ended by itself"))

    def fail(self, error: BaseException) -> None:
        self._outcomes.put(error)

    # On the engine's thread.

    def next_token(self) -> SampledToken | FailedRow:
        """Wait for a token, or for the reason why the sequence gets none.

        Raises:
            GenerateFailed: `generate` failed.
        """
        outcome = self._outcomes.get()
        if isinstance(outcome, RowFailed):
            return outcome.row
        if isinstance(outcome, BaseException):
            raise GenerateFailed(f"{type(outcome).__name__}: {outcome}") from outcome
        return outcome

    def go_on(self) -> None:
        self._turns.release()

    def stop(self) -> None:
        self._is_stopped = True
        self._turns.release()


class _Job:
    """One call of `generate`."""

    def __init__(self, prompt: Chunk, *, vocab_size: int) -> None:
        self.prompt = prompt
        self.sequence = prompt.sequence
        self.raw = RawDistribution(self.sequence.params.logprobs, vocab_size=vocab_size)
        self.streamer = TokenStreamer(self.raw)
        self.is_over = threading.Event()


class GenerateRunner:
    """Runs one sequence at a time through `model.generate()`.

    Args:
        model: a transformers model with a language-model head; owned from here on. Its own
            generation defaults are taken away, so that a request means the same on every model.
    """

    max_num_seqs = 1
    cache = None

    def __init__(self, model: Any) -> None:
        model.generation_config = GenerationConfig()
        self._model = model
        self._device: torch.device = model.device
        self._num_readable_ids: int = model.get_input_embeddings().weight.shape[0]
        self._prompts = PromptScorer()
        self._job: _Job | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # One thread for all: torch keeps a pool of compute threads for each thread that calls it.
        self._thread: threading.Thread | None = None

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        (chunk,) = batch.chunks
        if self._job is None:
            self._job = _Job(chunk, vocab_size=self._num_readable_ids)
            self._start_job(self._job)
        else:
            assert self._job.sequence is chunk.sequence, "one sequence runs until it is released"
            self._job.streamer.go_on()
        return [self._prompts.add_to(chunk, self._job.streamer.next_token())]

    def release(self, sequence: Sequence) -> None:
        """Stop computing for the sequence; it has stopped when this returns."""
        if self._job is not None and self._job.sequence is sequence:
            self._end_job(self._job)
        self._prompts.forget(sequence.generation_id)

    def close(self) -> None:
        if self._job is not None:
            self._end_job(self._job)
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self._model = None

    def _start_job(self, job: _Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name="tokenwire-generate", daemon=True
            )
            self._thread.start()
        self._jobs.put(job)

    def _end_job(self, job: _Job) -> None:
        job.streamer.stop()
        job.is_over.wait()
        self._job = None

    # On the worker's thread.

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._generate(job)
            except GenerationStopped:
                pass
            except BaseException as error:  # noqa: BLE001 - `run` raises it where it is handled
                job.streamer.fail(error)
            finally:
                job.is_over.set()
                del job  # or the log would live until the next request

    @torch.inference_mode()
    def _generate(self, job: _Job) -> None:
        sequence = job.sequence
        if sequence.params.seed is not None:
            # The process-wide generator: nothing else draws from it while this sequence runs.
            torch.manual_seed(sequence.params.seed)
        token_ids = [*sequence.prompt_ids, *sequence.output_ids]
        if num_wanted := self._prompts.num_wanted(job.prompt):
            # `generate` keeps the logits of the last token only, so the prompt is read twice.
            prompt = torch.tensor([sequence.prompt_ids], device=self._device)
            logits = self._model(input_ids=prompt, use_cache=False).logits[0]
            self._prompts.take(job.prompt, logits[:num_wanted, : self._num_readable_ids])
        processors = [job.raw]
        if Penalties.are_wanted(sequence.params):
            processors.append(Penalized(sequence, self._device))
        if sequence.params.logit_bias:
            processors.append(LogitBias(sequence, self._device))
        if sequence.matcher is not None:
            processors.append(GrammarMask(sequence))
        elif sequence.params.min_tokens and sequence.barred_token_ids:
            processors.append(MinTokens(sequence, self._device))
        if len(processors) > 1:
            processors.append(SomeTokenLeft(sequence))
        self._model.generate(
            torch.tensor([token_ids], device=self._device),
            generation_config=_generation_config(sequence),
            logits_processor=LogitsProcessorList(processors),
            streamer=job.streamer,
        )


def _generation_config(sequence: Sequence) -> GenerationConfig:
    params = sequence.params
    if params.is_greedy:
        return GenerationConfig(max_new_tokens=sequence.num_tokens_left, do_sample=False)
    return GenerationConfig(
        max_new_tokens=sequence.num_tokens_left,
        do_sample=True,
        temperature=max(params.temperature, _MIN_TEMPERATURE),
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p or None,
    )


def load_generate_backend(config: ModelConfig, *, on_progress: OnProgress) -> Backend:
    """Load the model for `model.generate()`, warmed up.

    Raises:
        ModelLoadError: the model cannot be served.
    """
    loaded = load_model(config, on_progress=on_progress)
    on_progress(f"Warming up {loaded.info.model_id}", None)
    runner = GenerateRunner(loaded.model)
    try:
        with failing_as(f"{loaded.info.model_id} cannot generate"):
            warm_up(runner, loaded.info)
    except ModelLoadError:
        runner.close()
        raise
    return Backend(
        info=loaded.info, tokenizer=loaded.tokenizer, runner=runner, grammars=loaded.grammars
    )
