"""Loads a backend: a model runner with its tokenizer and grammar compiler.

Only modules of this package import torch and transformers, and only once a backend is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from streaming.backend import Backend
from streaming.config import BackendName, ModelConfig

if TYPE_CHECKING:
    from streaming.backends.loading.model_cache import CachedModel

OnProgress = Callable[[str, float | None], None]
"""Called with the current task in words and the fraction done, 0 to 1, or None if unknown."""


def list_cached_models(cache_dir: str | None = None) -> list[CachedModel]:
    """Return the models on this machine: the converted ones, then those downloaded from the hub.

    Args:
        cache_dir: the folder of converted models. None is the user's cache directory.
    """
    from streaming.backends.loading import model_cache

    return model_cache.list_cached_models(cache_dir)


def load_backend(config: ModelConfig, *, on_progress: OnProgress = lambda *_: None) -> Backend:
    """Load a model and return its backend, ready to serve.

    Args:
        config: the model, its limits and the backend to use.
        on_progress: called while the model is fetched, converted and loaded.

    Raises:
        ModelLoadError: the model cannot be served. The message is one line with the reason.
    """
    match config.backend:
        case BackendName.SCRIPTED:
            from streaming.backends.scripted import scripted_backend

            return scripted_backend()
        case BackendName.BATCHED:
            from streaming.backends.loading.batched_loader import load_batched_backend

            return load_batched_backend(config, on_progress=on_progress)
        case BackendName.GENERATE:
            from streaming.backends.generate import load_generate_backend

            return load_generate_backend(config, on_progress=on_progress)
        case _:
            assert_never(config.backend)
