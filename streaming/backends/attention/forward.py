"""One forward pass of a transformers model over a paged KV cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from streaming.backends.attention.kv_cache import LAYOUT_ARGUMENT, PagedKVCache, UnsupportedModel
from streaming.backends.attention.model_input import Step


def forward(model: Any, step: Step, paged_cache: PagedKVCache) -> torch.Tensor:
    """Run the model on a step's tokens and return logits.

    Returns:
        (len(step.logits_rows), vocab_size): the logits of these rows.

    Raises:
        UnsupportedModel: the model returned another number of rows. They could not be assigned to
            sequences.
    """
    paged_cache.layout = step.layout
    output = model(
        input_ids=step.token_ids,
        position_ids=step.positions,
        use_cache=True,
        logits_to_keep=step.logits_rows,
        **{_cache_argument(type(model).forward): paged_cache, LAYOUT_ARGUMENT: step.layout},
    )
    logits: torch.Tensor = output.logits
    num_wanted = len(step.logits_rows)
    if logits.dim() != 3 or logits.shape[:2] != (1, num_wanted):
        raise UnsupportedModel(
            f"its logits have shape {tuple(logits.shape)} instead of "
            f"(1, {num_wanted}, vocab_size): it seems to ignore `logits_to_keep`"
        )
    return logits[0]


@cache
def _cache_argument(model_forward: Callable[..., Any]) -> str:
    """Return the name of a model's cache argument. It is `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model_forward).parameters else "past_key_values"
