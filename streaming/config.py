"""What the engine is told at start. The web layer's settings build it; every default lives here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BackendName(StrEnum):
    BATCHED = "batched"
    GENERATE = "generate"
    SCRIPTED = "scripted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how to load it.

    Attributes:
        model: a hub id, a local folder or a `.gguf` file; None is the embedded default model.
        backend: what turns prompts into tokens.
        dtype: "auto", or the name of a torch dtype: float32, bfloat16, float16.
        device: "auto", or a torch device: cpu, cuda, cuda:1.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: load weights that are not safetensors; such a file can run any code.
        cache_dir: where converted models are kept; None is the user's cache directory.
        max_model_len: context size in tokens; None is the model's own.
        num_threads: CPU threads of the model; None leaves torch's choice.
        max_num_seqs: most sequences in one batch.
        max_batch_tokens: most tokens in one batch, prompts and answers together.
        kv_cache_bytes: memory for keys and values; None takes a share of what is free.
        batch_invariant: a request is answered the same, to the bit, whatever else is in the batch;
            a model that cannot be is refused. Not the default: it costs 2 to 8 % of the speed, and
            seconds at start for the proof, the more the larger the model.
        native_kernels: on a CPU, attend, normalise and draw by kernels of our own, compiled once,
            where there is a C++ compiler.
    """

    model: str | None = None
    backend: BackendName = BackendName.BATCHED
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    cache_dir: str | None = None
    max_model_len: int | None = None
    num_threads: int | None = None
    max_num_seqs: int = 64
    max_batch_tokens: int = 512
    kv_cache_bytes: int | None = None
    batch_invariant: bool = False
    native_kernels: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of the engine.

    Attributes:
        max_waiting_requests: requests that may wait for their first step.
        max_waiting_requests_per_caller: what one caller may have of them; None is all.
        max_waiting_tokens: prompt tokens that may wait with them; a longer prompt waits alone.
        max_waiting_tokens_per_caller: what one caller may have of them; None is all.
        max_generations: generations that may be open, running, preempted and waiting; None is as
            many as may run and wait.
        max_generations_per_caller: what one caller may have of them; None is all.
        max_priority: the highest priority that a request may ask for. It goes before all lower ones
            of other callers, so by default nobody may ask for more than the ordinary 0.
        request_timeout_s: a generation that runs longer is ended with an error.
        step_timeout_s: a step that takes longer hangs, and the engine with it: it fails for good.
            A prompt whose tokenisation takes longer is given up.
        retention_s: how long an ended log can be read that nobody follows any more.
        retention_bytes: how much memory ended logs may take; the oldest go first.
        num_tokenizer_threads: prompts that are tokenised at once.
        close_timeout_s: time for threads to end when the engine is closed.
    """

    max_waiting_requests: int = 256
    max_waiting_requests_per_caller: int | None = None
    max_waiting_tokens: int = 1_000_000
    max_waiting_tokens_per_caller: int | None = None
    max_generations: int | None = None
    max_generations_per_caller: int | None = None
    max_priority: int = 0
    request_timeout_s: float = 600.0
    step_timeout_s: float = 120.0
    retention_s: float = 300.0
    retention_bytes: int = 64 * 2**20
    num_tokenizer_threads: int = 2
    close_timeout_s: float = 5.0
