"""Configuration of the engine and its model. `app.settings` builds it; all defaults are here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BackendName(StrEnum):
    """Name of a backend: continuous batching, transformers' `generate`, or scripted answers."""

    BATCHED = "batched"
    GENERATE = "generate"
    SCRIPTED = "scripted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model, and how to load and run it.

    Attributes:
        model: a hub id, a local folder or a `.gguf` file; None is the embedded default model.
        backend: the backend that runs the model.
        dtype: "auto", or the name of a torch dtype: float32, bfloat16, float16.
        device: "auto", or a torch device: cpu, cuda, cuda:1.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: load weights in pickle format, which can execute any code.
        cache_dir: directory for converted models; None uses the user's cache directory.
        max_model_len: context size in tokens; None uses the model's own.
        num_threads: CPU threads of the model; None uses torch's default.
        max_num_seqs: most sequences in one batch.
        max_batch_tokens: most tokens in one batch, prefill and decode together.
        kv_cache_bytes: size of the KV cache; None uses a share of the free memory.
        batch_invariant: compute the same answer, bit for bit, whatever else is in the batch. A
            model that does not support it fails to load. Off by default: it costs 2 to 8 % of the
            throughput, and seconds at start for the check, more for larger models.
        native_kernels: on a CPU with a C++ compiler, compile native kernels once and use them for
            attention, normalisation and sampling.
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
        max_waiting_requests: most requests that wait for their first step.
        max_waiting_requests_per_caller: limit for one caller; None sets none.
        max_waiting_tokens: most prompt tokens of waiting requests. A longer prompt may wait alone.
        max_waiting_tokens_per_caller: limit for one caller; None sets none.
        max_generations: most open generations: running, preempted and waiting; None is the sum of
            the limits on running and waiting ones.
        max_generations_per_caller: limit for one caller; None sets none.
        max_priority: highest priority that a request may have. Higher priorities run before the
            requests of all other callers, so the default allows the ordinary 0 and lower.
        request_timeout_s: seconds after which a generation ends with an error.
        step_timeout_s: seconds after which a step counts as hung, and the engine fails for good.
            A tokenisation that takes longer fails its request.
        retention_s: seconds for which an ended log can be read after its last subscriber left.
        retention_bytes: most memory of ended logs; the oldest are dropped first.
        num_tokenizer_threads: threads that tokenise prompts.
        close_timeout_s: seconds to wait for threads to end when the engine is closed.
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
