"""Up to which length a model attends as batches do, found out before it is batched.

A probe of a few tokens sees nothing of what begins further on. transformers tells an attention of
a window twice, as an argument and in the mask, and of anything else in the mask alone, which it
leaves out for attentions that it does not know, such as ours. So one pass is made by an attention
that attends to nothing and notes what it is told; of masks it takes the rule and not the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from streaming.backends.attention.kv_cache import UnsupportedModel

_NAME = "tokenwire_survey"
_NUM_TOKENS = 4
_MAX_LENGTH = 2**20
"""As far as rules of masks are looked at."""
_ROPE_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that change when anything in the batch passes a length."""
_NEEDLESS_TENSORS = {"position_ids"}
"""Most models pass them on to their attention, which does not look at them."""

MaskRule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes batch, head, query and key positions, and says which key is seen by which query."""


@dataclass(frozen=True, slots=True)
class _Mask:
    """What a rule comes to.

    Attributes:
        window: tokens that a query sees, itself included; infinite without a limit.
        length: up to so many tokens it is that, and beyond it something else.
    """

    window: float
    length: float


@torch.inference_mode()
def known_length(model: Any, max_length: int, *, max_batch_tokens: int) -> int:
    """Return up to how many tokens, at most `max_length`, the model can be batched.

    Args:
        max_batch_tokens: most tokens in one batch.

    Raises:
        UnsupportedModel: its attention is none that we know, at any length.
    """
    own_attention, device = model.config._attn_implementation, model.device
    config = model.config.get_text_config()
    length: float = min([max_length, *_lengths_of_config(config, max_batch_tokens)])

    def note_mask(*, mask_function: MaskRule, **_: Any) -> _Mask:
        return _to_mask(mask_function, min(max_length, _MAX_LENGTH), device)

    def note_attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: _Mask | torch.Tensor | None,
        **arguments: Any,
    ) -> tuple[torch.Tensor, None]:
        nonlocal length
        length = min(length, _length_of_attention(module, attention_mask, arguments))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(_NAME, note_attention)
    AttentionMaskInterface.register(_NAME, note_mask)
    try:
        model.set_attn_implementation(_NAME)
        ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device=device)
        model(input_ids=ids, use_cache=False)
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(f"its attention cannot be looked at ({error})") from error
    finally:
        model.set_attn_implementation(own_attention)
    return int(length)


def _lengths_of_config(config: Any, max_batch_tokens: int) -> Iterator[int]:
    """Yield lengths up to which positions mean the same whatever else is in a batch.

    Raises:
        UnsupportedModel: they never do.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    # One set for all layers, or one for each kind of them.
    for some in [parameters] if "rope_type" in parameters else parameters.values():
        if isinstance(some, dict) and some.get("rope_type") in _ROPE_BY_LENGTH:
            yield (
                some.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings
            )
    if getattr(config, "attn_temperature_tuning", False):
        # Llama 4 takes the rows of a batch for positions; the first ones are all alike to it.
        if max_batch_tokens >= config.floor_scale:
            raise UnsupportedModel("it takes the rows of a batch for positions")
        yield config.floor_scale - 1


def _length_of_attention(
    module: torch.nn.Module, mask: _Mask | torch.Tensor | None, arguments: dict[str, Any]
) -> float:
    """Return up to which length a layer attends as ours would.

    Raises:
        UnsupportedModel: at none.
    """
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and name not in _NEEDLESS_TENSORS:
            raise UnsupportedModel(f"its attention takes {name}, which ours does not know")
    if isinstance(mask, torch.Tensor):
        raise UnsupportedModel("it makes masks of its own")
    is_causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise UnsupportedModel("its tokens see those behind them")
    window = arguments.get("sliding_window") or inf
    if mask is None:
        return inf
    return mask.length if mask.window == window else min(mask.length, mask.window, window)


def _to_mask(rule: MaskRule, max_length: int, device: torch.device) -> _Mask:
    """Find out what a rule comes to.

    Raises:
        UnsupportedModel: to nothing that ours could do.
    """
    queries = torch.arange(max_length, device=device)
    zeros = torch.zeros_like(queries)

    def sees(keys: torch.Tensor) -> torch.Tensor:
        return rule(zeros, zeros, queries, keys).expand(max_length)

    if bool(sees(queries + 1).any()) or not bool(sees(queries).all()):
        raise UnsupportedModel("its tokens see others than themselves and those before")
    sees_first = sees(zeros)
    if bool(sees_first.all()):
        return _Mask(inf, inf)
    reach = int(sees_first.to(torch.int8).argmin())  # the first query that does not see the first
    is_window = bool(sees((queries - reach + 1).clamp(min=0)).all()) and not bool(
        sees((queries - reach).clamp(min=0))[reach:].any()
    )
    return _Mask(reach, inf) if is_window else _Mask(inf, reach)
