"""One forward pass of a transformers model over a paged cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from streaming.backends.attention.kv_cache import LAYOUT_ARGUMENT, PagedKVCache, UnsupportedModel
from streaming.backends.attention.model_input import Step


def forward(model: Any, step: Step, paged_cache: PagedKVCache) -> torch.Tensor:
    """Run a step.

    Returns:
        (num_rows, vocab_size): the logits of `step.logits_rows`.

    Raises:
        UnsupportedModel: it returned those of other rows, which would go to the wrong sequences.
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
            f"its logits are of shape {tuple(logits.shape)} and not (1, {num_wanted}, vocab_size), "
            f"as if it took no `logits_to_keep`"
        )
    return logits[0]


@cache
def _cache_argument(model_forward: Callable[..., Any]) -> str:
    """Return what a model calls its cache: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model_forward).parameters else "past_key_values"
