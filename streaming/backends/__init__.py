"""The backends. torch and transformers are imported below here only, when one is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from streaming.backend import Backend
from streaming.config import BackendName, ModelConfig

if TYPE_CHECKING:
    from streaming.backends.loading.model_cache import CachedModel

OnProgress = Callable[[str, float | None], None]
"""Told what is being done and how much of it is done, 0 to 1 or None where that is unknown."""


def list_cached_models(cache_dir: str | None = None) -> list[CachedModel]:
    """Return the models that are on this machine, by name.

    Args:
        cache_dir: where converted models are kept; None is the user's cache directory.
    """
    from streaming.backends.loading import model_cache

    return model_cache.list_cached_models(cache_dir)


def load_backend(config: ModelConfig, *, on_progress: OnProgress = lambda *_: None) -> Backend:
    """Load the model and return it ready to serve.

    Args:
        on_progress: called while the model is fetched, converted and loaded.

    Raises:
        ModelLoadError: the model cannot be served; the message is one line that says why.
    """
    match config.backend:
        case BackendName.SCRIPTED:
            from streaming.backends.scripted import scripted_backend

            return scripted_backend()
        case BackendName.BATCHED:
            from streaming.backends.batched import load_batched_backend

            return load_batched_backend(config, on_progress=on_progress)
        case BackendName.GENERATE:
            from streaming.backends.generate import load_generate_backend

            return load_generate_backend(config, on_progress=on_progress)
        case _:
            assert_never(config.backend)
