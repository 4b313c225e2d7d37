"""Finds the context length up to which batches support a model's attention.

Called by the batched loader. `verification` runs a few tokens only, so it misses what begins at
later positions, such as a sliding window. transformers passes a window to the attention function as
an argument and in the mask; any other pattern is in the mask alone, and transformers makes no mask
for attention functions of other libraries. So this module runs the model once with an attention
function that records its arguments and returns zeros, and with a mask function that records the
rule of the mask instead of making a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from streaming.backends.attention.kv_cache import UnsupportedModel

_NAME = "tokenwire_context_support"
_NUM_TOKENS = 4
_MAX_LENGTH = 2**20
"""Mask rules are evaluated up to this many tokens."""
_ROPE_BY_LENGTH = ("dynamic", "longrope")
"""Types of rotary embeddings that change for all rows once any position reaches a length."""
_IGNORED_TENSORS = {"position_ids"}
"""Tensors that most models pass to their attention function, which does not read them."""

MaskRule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes indices of batch, head, query and key. Returns bools: whether the query sees the key."""


@dataclass(frozen=True, slots=True)
class _Mask:
    """A mask rule, reduced to causal attention with a window.

    Attributes:
        window: tokens that a query sees, itself included; infinite without a limit.
        length: tokens of a sequence up to which the rule is this one.
    """

    window: float
    length: float


@torch.inference_mode()
def supported_length(model: Any, max_length: int, *, max_batch_tokens: int) -> int:
    """Return the context length, in tokens, up to which the model can be batched.

    Args:
        model: a transformers model.
        max_length: largest value to return.
        max_batch_tokens: most tokens in one batch.

    Raises:
        UnsupportedModel: batches do not support its attention at any length.
    """
    own_attention, device = model.config._attn_implementation, model.device
    config = model.config.get_text_config()
    length: float = min([max_length, *_lengths_of_config(config, max_batch_tokens)])

    def record_mask(*, mask_function: MaskRule, **_: Any) -> _Mask:
        return _reduce(mask_function, min(max_length, _MAX_LENGTH), device)

    def record_attention(
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

    AttentionInterface.register(_NAME, record_attention)
    AttentionMaskInterface.register(_NAME, record_mask)
    try:
        model.set_attn_implementation(_NAME)
        ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device=device)
        model(input_ids=ids, use_cache=False)
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(f"its attention cannot be examined ({error})") from error
    finally:
        model.set_attn_implementation(own_attention)
    return int(length)


def _lengths_of_config(config: Any, max_batch_tokens: int) -> Iterator[int]:
    """Yield lengths up to which a token's position encoding does not depend on other rows.

    Raises:
        UnsupportedModel: it depends on them at any length.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    # One set of parameters for all layers, or one for each kind of layer.
    for rope in [parameters] if "rope_type" in parameters else parameters.values():
        if isinstance(rope, dict) and rope.get("rope_type") in _ROPE_BY_LENGTH:
            yield (
                rope.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings
            )
    if getattr(config, "attn_temperature_tuning", False):
        # Llama 4 scales queries by their row in the input instead of their position. The scale of
        # the first `floor_scale` - 1 rows is 1.
        if max_batch_tokens >= config.floor_scale:
            raise UnsupportedModel("it scales queries by rows of the batch")
        yield config.floor_scale - 1


def _length_of_attention(
    module: torch.nn.Module, mask: _Mask | torch.Tensor | None, arguments: dict[str, Any]
) -> float:
    """Return the length up to which batches support the attention of a layer; may be infinite.

    Raises:
        UnsupportedModel: they do not support it at any length.
    """
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and name not in _IGNORED_TENSORS:
            raise UnsupportedModel(f"its attention takes {name}, which batches do not support")
    if isinstance(mask, torch.Tensor):
        raise UnsupportedModel("it makes its own attention masks")
    is_causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise UnsupportedModel("its attention is not causal")
    window = arguments.get("sliding_window") or inf
    if mask is None:
        return inf
    return mask.length if mask.window == window else min(mask.length, mask.window, window)


def _reduce(rule: MaskRule, max_length: int, device: torch.device) -> _Mask:
    """Return the causal mask, with or without a window, that a rule equals.

    Args:
        rule: the mask rule.
        max_length: tokens for which the rule is evaluated.
        device: where the rule is evaluated.

    Raises:
        UnsupportedModel: the rule is not causal, or a query does not see its own token.
    """
    queries = torch.arange(max_length, device=device)
    zeros = torch.zeros_like(queries)

    def sees(keys: torch.Tensor) -> torch.Tensor:
        return rule(zeros, zeros, queries, keys).expand(max_length)

    if bool(sees(queries + 1).any()) or not bool(sees(queries).all()):
        raise UnsupportedModel("its attention mask is not causal")
    sees_first = sees(zeros)
    if bool(sees_first.all()):
        return _Mask(inf, inf)
    reach = int(sees_first.to(torch.int8).argmin())  # the first query that does not see the first
    is_window = bool(sees((queries - reach + 1).clamp(min=0)).all()) and not bool(
        sees((queries - reach).clamp(min=0))[reach:].any()
    )
    return _Mask(reach, inf) if is_window else _Mask(inf, reach)
