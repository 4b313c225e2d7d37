"""`forward` uses the model's own name for its cache and checks the shape of its logits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from streaming.backend import Batch
from streaming.backends.attention.forward import forward
from streaming.backends.attention.kv_cache import METADATA_ARGUMENT, UnsupportedModel
from streaming.backends.attention.model_input import prepare_inputs
from streaming.backends.attention.tiled_kv_cache import TiledKVCache
from streaming.backends.optimization.warm_up import dummy_chunk


class Model(torch.nn.Module):
    """Records its arguments; its logits are the positions of the rows."""

    def _answer(self, position_ids, logits_to_keep, **arguments):
        self.arguments = arguments | {"logits_to_keep": logits_to_keep}
        return SimpleNamespace(logits=position_ids[:, logits_to_keep, None])


class ModelWithCache(Model):
    def forward(self, position_ids, cache, **arguments):
        return self._answer(position_ids, cache=cache, **arguments)


class ModelWithPastKeyValues(Model):
    def forward(self, position_ids, past_key_values, **arguments):
        return self._answer(position_ids, past_key_values=past_key_values, **arguments)


class ModelOfShape(torch.nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, **_):
        return SimpleNamespace(logits=torch.zeros(self.shape))


def one_prompt(paged_cache):
    chunk = dummy_chunk([5, 6, 7], start=0, block_ids=[0])
    return prepare_inputs(Batch((chunk,)), cache=paged_cache, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("model", "name"), [(ModelWithCache(), "cache"), (ModelWithPastKeyValues(), "past_key_values")]
)
def test_the_cache_is_passed_under_the_models_name_for_it(model, name):
    paged_cache = TiledKVCache(1, 16)
    model_input = one_prompt(paged_cache)

    logits = forward(model, model_input, paged_cache)

    assert logits.tolist() == [[2]]
    assert model.arguments.pop(name) is paged_cache
    assert (
        model.arguments.pop(METADATA_ARGUMENT)
        is model_input.attention_metadata
        is paged_cache.metadata
    )
    assert model.arguments == {
        "input_ids": model_input.token_ids,
        "use_cache": True,
        "logits_to_keep": model_input.logits_rows,
    }


@pytest.mark.parametrize("shape", [(1, 3, 9), (1, 0, 9), (2, 1, 9), (1, 9)])
def test_logits_of_another_shape_are_rejected(shape):
    """They would silently be assigned to the wrong sequences."""
    paged_cache = TiledKVCache(1, 16)
    model_input = one_prompt(paged_cache)

    with pytest.raises(UnsupportedModel, match="seems to ignore `logits_to_keep`"):
        forward(ModelOfShape(shape), model_input, paged_cache)
