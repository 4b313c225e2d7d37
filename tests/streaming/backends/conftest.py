"""Models that are loaded once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streaming.backends.loading.model_loader import LoadedModel, load_model
from streaming.config import ModelConfig
from tests.streaming.backends import tiny_models


@pytest.fixture(autouse=True)
def _one_compute_thread() -> Iterator[None]:
    """Compute on one thread: more do not help tiny tensors and are slow on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny model on disk. Tests must not write to it."""
    return tiny_models.save_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def default_model() -> LoadedModel:
    """The embedded default model from the user's cache, converted if needed."""
    return load_model(ModelConfig(dtype="float32"), on_progress=lambda *_: None)
