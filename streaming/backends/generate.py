"""The reference backend: `model.generate()` itself, for any causal language model.

One sequence runs at a time. `generate` runs in a greenlet, in lock-step with the engine: `run`
resumes it for one token and leaves it suspended. Only the engine decides when a text ends, so
`generate` gets no end token; `release` stops it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from greenlet import error as GreenletError
from transformers import GenerationConfig, LogitsProcessorList, TextIteratorStreamer

from streaming.backend import Backend, Batch, Chunk, FailedRow, SampledToken
from streaming.backends import OnProgress
from streaming.backends.loading.load_failure import as_load_error
from streaming.backends.loading.model_loader import load_model
from streaming.backends.optimization.warm_up import warm_up
from streaming.backends.sampling.logits_processors import RawDistribution, RequestRules
from streaming.backends.sampling.prompt_scorer import PromptScorer
from streaming.backends.sampling.row_failure import RowFailed
from streaming.backends.sampling.sampling import MIN_TEMPERATURE
from streaming.config import ModelConfig
from streaming.errors import ModelLoadError

logger = logging.getLogger(__name__)


class GenerateFailed(RuntimeError):
    """`model.generate()` raised, or returned before `release`; the cause is chained."""


class TokenStreamer(TextIteratorStreamer):  # type: ignore[misc]
    """Passes each token to the engine, and suspends `generate` until the next step.

    It also stops `generate`. A StoppingCriteria is evaluated before the streamer gets the token, so
    a stop caused by the token itself (a stop string, an end token) would take effect only after one
    more forward pass.

    Args:
        raw: has the log probabilities of the newest token.
        engine: the greenlet that takes the tokens.
    """

    def __init__(self, raw: RawDistribution, engine: greenlet) -> None:
        super().__init__(tokenizer=None)
        self._is_prompt_next = True
        self._raw = raw
        self._engine = engine

    def put(self, value: torch.Tensor) -> None:
        """Switch to the engine with the next token; skip the prompt, which comes first."""
        if self._is_prompt_next:
            self._is_prompt_next = False
            return
        token_id = int(value)
        self._engine.switch(SampledToken(token_id, self._raw.logprobs_of(token_id)))

    def end(self) -> None:
        """Do nothing: `generate` returns, and `_Job.next_token` raises."""


class _Job:
    """One call of `generate`, suspended in its streamer between two tokens.

    A greenlet has its own stack on the thread that made it, so the model computes on the engine's
    thread. See `streaming.engine.engine_thread` for the reason.

    Args:
        prompt: the first chunk of the sequence, with all its tokens.
        generate: makes the call.
        vocab_size: ids that the model can read are below it.
    """

    def __init__(self, prompt: Chunk, generate: Callable[[_Job], None], *, vocab_size: int) -> None:
        self.prompt = prompt
        self._chunk = prompt
        self.raw = RawDistribution(prompt.sequence.params.logprobs, vocab_size=vocab_size)
        self.streamer = TokenStreamer(self.raw, getcurrent())
        self._greenlet = greenlet(partial(generate, self))

    @property
    def generation_id(self) -> str:
        """The sequence's generation id."""
        return self.prompt.sequence.generation_id

    def current_chunk(self) -> Chunk:
        """Return the chunk of the current step."""
        return self._chunk

    def next_token(self, chunk: Chunk) -> SampledToken | FailedRow:
        """Resume `generate` for one token; return the token, or why the sequence gets none.

        Args:
            chunk: of this step. Its grammar mask is used; `generate` has its tokens already.

        Raises:
            GenerateFailed: `generate` failed.
        """
        self._chunk = chunk
        try:
            outcome = self._greenlet.switch()
        except RowFailed as failed:
            return failed.row
        except BaseException as error:
            raise GenerateFailed(f"{type(error).__name__}: {error}") from error
        if not isinstance(outcome, SampledToken):
            raise GenerateFailed("generate ended by itself")
        return outcome

    def stop(self) -> None:
        """Unwind `generate`, if it is suspended."""
        try:
            while self._greenlet:  # begun, and not ended
                self._greenlet.throw(GreenletExit)
        except GreenletError:
            logger.debug("the thread of a call of generate has ended before it")


class GenerateRunner:
    """Runs one sequence at a time through `model.generate()`.

    Args:
        model: a transformers model with a language-model head; the runner takes ownership. Its
            generation defaults are removed, so that a request means the same on every model.
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

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        """Run one step of the one sequence; see `ModelRunner.run`."""
        (chunk,) = batch.chunks
        if self._job is None:
            self._job = _Job(chunk, self._generate, vocab_size=self._num_readable_ids)
        generation_id = chunk.sequence.generation_id
        assert self._job.generation_id == generation_id, "one sequence runs until it is released"
        return [self._prompts.add_to(chunk, self._job.next_token(chunk))]

    def release(self, generation_id: str) -> None:
        """Stop the call of `generate` that runs for a sequence, if there is one."""
        if self._job is not None and self._job.generation_id == generation_id:
            self._end_job(self._job)
        self._prompts.forget(generation_id)

    def close(self) -> None:
        """Stop the call of `generate` that runs, and release the model."""
        if self._job is not None:
            self._end_job(self._job)
        self._model = None

    def _end_job(self, job: _Job) -> None:
        self._job = None
        job.stop()

    @torch.inference_mode()
    def _generate(self, job: _Job) -> None:
        prompt, sequence, params = job.prompt, job.prompt.sequence, job.prompt.sequence.params
        if params.seed is not None:
            # The process-wide generator: nothing else draws from it while this sequence runs.
            torch.manual_seed(params.seed)
        if prompt.scored_ids:
            # `generate` keeps the logits of the last token only, so the prompt is read twice.
            prompt_ids = [prompt.token_ids[: sequence.num_prompt_tokens]]
            ids = torch.tensor(prompt_ids, device=self._device)
            logits = self._model(input_ids=ids, use_cache=False).logits[0]
            num_scored = len(prompt.scored_ids)
            self._prompts.take(prompt, logits[:num_scored, : self._num_readable_ids])
        processors = [job.raw]
        if RequestRules.are_needed(prompt):
            processors.append(RequestRules(job.current_chunk, self._device))
        self._model.generate(
            torch.tensor([prompt.token_ids], device=self._device),
            generation_config=_generation_config(prompt),
            logits_processor=LogitsProcessorList(processors),
            streamer=job.streamer,
        )


def _generation_config(prompt: Chunk) -> GenerationConfig:
    """Return the generation config of a sequence, from its first chunk."""
    params = prompt.params
    assert params.max_tokens is not None
    num_tokens_left = params.max_tokens - prompt.output_position
    if params.is_greedy:
        return GenerationConfig(max_new_tokens=num_tokens_left, do_sample=False)
    return GenerationConfig(
        max_new_tokens=num_tokens_left,
        do_sample=True,
        temperature=max(params.temperature, MIN_TEMPERATURE),
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
        with as_load_error(f"{loaded.info.model_id} cannot generate"):
            warm_up(runner, loaded.info)
    except ModelLoadError:
        runner.close()
        raise
    return Backend(
        info=loaded.info, tokenizer=loaded.tokenizer, runner=runner, grammars=loaded.grammars
    )
