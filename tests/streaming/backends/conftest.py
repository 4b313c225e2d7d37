"""Models that are loaded once."""

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
    """Tiny tensors gain nothing from several threads, and on a busy machine they lose much."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny model on disk; not to be written to."""
    return tiny_models.save_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def default_model() -> LoadedModel:
    """The embedded default model from the user's own cache, converted if it is not there."""
    return load_model(ModelConfig(dtype="float32"), on_progress=lambda *_: None)
