"""One forward pass of a transformers model over a paged KV cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from streaming.backends.attention.kv_cache import METADATA_ARGUMENT, PagedKVCache, UnsupportedModel
from streaming.backends.attention.model_input import ModelInput


def forward(model: Any, model_input: ModelInput, paged_cache: PagedKVCache) -> torch.Tensor:
    """Run the model on the tokens of a step and return logits.

    Returns:
        (len(model_input.logits_rows), vocab_size): the logits of these rows.

    Raises:
        UnsupportedModel: the model returned another number of rows. They could not be assigned to
            sequences.
    """
    metadata = paged_cache.metadata = model_input.attention_metadata
    output = model(
        input_ids=model_input.token_ids,
        position_ids=model_input.positions,
        use_cache=True,
        logits_to_keep=model_input.logits_rows,
        **{_cache_argument(type(model).forward): paged_cache, METADATA_ARGUMENT: metadata},
    )
    logits: torch.Tensor = output.logits
    num_rows = len(model_input.logits_rows)
    if logits.dim() != 3 or logits.shape[:2] != (1, num_rows):
        raise UnsupportedModel(
            f"its logits have shape {tuple(logits.shape)} instead of "
            f"(1, {num_rows}, vocab_size): it seems to ignore `logits_to_keep`"
        )
    return logits[0]


@cache
def _cache_argument(model_forward: Callable[..., Any]) -> str:
    """Return the name of a model's cache argument. It is `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model_forward).parameters else "past_key_values"
