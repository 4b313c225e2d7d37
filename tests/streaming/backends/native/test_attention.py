"""Tests of the kernel alone: sizes, splits, threads, and tensors that it must reject.

Its results are compared with the formula in `tests/streaming/backends/attention/test_kv_cache.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streaming.backends.native.attention import native_attention
from tests.streaming.backends.attentions import AttentionRig, attention_named, kernels


def make_rig(lengths: list[int], **options: Any) -> AttentionRig:
    return AttentionRig(attention_named("native"), lengths, block_size=16, **options)


@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_supported_head_size_equals_plain_attention(head_dim: int, dtype: torch.dtype) -> None:
    rig = make_rig([70, 33], head_dim=head_dim, dtype=dtype)
    rig.step([(0, 69), (1, 32)])
    rig.step([(0, 1), (1, 1)])
    rig.check()


@pytest.mark.parametrize("sliding_window", [None, 64, 600])
def test_decodes_of_several_splits_equal_plain_attention(sliding_window: int | None) -> None:
    """One token before, at and after the border of a split, and more than two splits."""
    rig = make_rig([1540, 513, 512], num_heads=6, num_kv_heads=2)
    rig.step([(0, 1538), (1, 511), (2, 510)], sliding_window=sliding_window)
    for _ in range(2):
        rig.step([(0, 1), (1, 1), (2, 1)], sliding_window=sliding_window)
    rig.check(sliding_window=sliding_window)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_the_number_of_threads_does_not_affect_the_bits(num_threads: int) -> None:
    rigs = [make_rig([1100, 40], num_heads=6, num_kv_heads=2) for _ in range(2)]
    for rig, number in zip(rigs, (1, num_threads), strict=True):
        torch.set_num_threads(number)
        rig.step([(0, 1099), (1, 39)])
        rig.step([(0, 1), (1, 1)])
    for first, second in zip(*[rig.outputs for rig in rigs], strict=True):
        assert torch.equal(torch.cat(first), torch.cat(second))


def test_values_can_have_another_size_than_keys() -> None:
    attention = native_attention(kernels())
    rig = make_rig([20])
    key, value = rig.rows[0].key, torch.randn(20, 2, 48)
    cache = attention.make_cache(2, 16)
    slots = torch.arange(20)
    cache.metadata = cache.build_metadata(
        [], slots, [torch.tensor([0, 20, 20, 0]), torch.tensor([0, 1])]
    )
    keys, values = cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], 0)
    query = rig.rows[0].query.transpose(0, 1)[None]
    output, _ = attention.function(
        None, query, keys, values, None, attention_metadata=cache.metadata
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        is_causal=True,
        enable_gqa=True,
    )
    torch.testing.assert_close(output.transpose(1, 2), expected)


def test_scores_far_apart_equal_plain_attention() -> None:
    rig = make_rig([130])
    rig.rows[0].query *= 30
    rig.step([(0, 130)])
    rig.check()


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_strided_and_transposed_tensors_give_the_same_bits(num_tokens: int) -> None:
    plain, odd = make_rig([3]), make_rig([3])
    for name in ("query", "key", "value"):
        tensor = getattr(odd.rows[0], name)
        setattr(odd.rows[0], name, tensor.transpose(1, 2).contiguous().transpose(1, 2))
    for rig in (plain, odd):
        while rig.done[0] < 3:
            rig.step([(0, num_tokens)])
    assert torch.equal(torch.cat(plain.outputs[0]), torch.cat(odd.outputs[0]))


@pytest.mark.parametrize(
    ("head_dim", "dtype", "reason"),
    [
        (8, torch.float32, "multiple of 16 .got 8"),
        (16, torch.float16, "support torch.float16 on cpu"),
    ],
)
def test_unsupported_head_sizes_and_dtypes_are_rejected(
    head_dim: int, dtype: torch.dtype, reason: str
) -> None:
    rig = make_rig([3], head_dim=head_dim, dtype=dtype)
    with pytest.raises(NotImplementedError, match=reason):
        rig.step([(0, 3)])


def tensors_of(rig: AttentionRig) -> dict[str, torch.Tensor]:
    """Return query, key and value of a rig's first sequence, each (1, heads, L, D)."""
    query, key, value = (
        getattr(rig.rows[0], name).transpose(0, 1)[None] for name in ("query", "key", "value")
    )
    return {"query": query, "key": key, "value": value}


NARROW = torch.bfloat16


@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("is_first", [True, False])
def test_keys_and_values_of_two_dtypes_are_rejected(name: str, is_first: bool) -> None:
    rig = make_rig([20])
    if not is_first:
        rig.step([(0, 17)])
    taken = tensors_of(rig)
    taken[name] = taken[name].to(NARROW)
    rig.cache.metadata = rig.cache.build_metadata([], torch.arange(20), [torch.empty(0)] * 2)
    with pytest.raises(TypeError, match=r"all bfloat16 \(got .* torch\.bfloat16 \(1, 2, 20, 16\)"):
        rig.cache.update(taken["key"], taken["value"], 0)


def test_a_layer_whose_dtype_changes_is_rejected() -> None:
    rig = make_rig([20])
    rig.step([(0, 17)])
    taken = {name: tensor.to(NARROW) for name, tensor in tensors_of(rig).items()}
    with pytest.raises(TypeError, match=r"keys torch\.bfloat16 .* cached_keys torch\.float32"):
        rig.cache.update(taken["key"], taken["value"], 0)


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ((slice(None), slice(1)), ()),
        ((), (slice(None), slice(1))),
        ((slice(None), slice(1)), (slice(None), slice(1))),
        ((..., slice(16)), ()),
        ((), (..., slice(16))),
        ((), (slice(None), slice(None), slice(19))),
        ((slice(None), slice(None), slice(16)), (slice(None), slice(None), slice(16))),
    ],
    ids=[
        "fewer heads of keys",
        "fewer heads of values",
        "fewer heads",
        "shorter keys",
        "shorter values",
        "fewer values",
        "fewer tokens than slots",
    ],
)
def test_keys_and_values_that_do_not_fit_the_layer_are_rejected(keys: Any, values: Any) -> None:
    rig = make_rig([20], head_dim=32)
    rig.step([(0, 17)])
    taken = tensors_of(rig)
    with pytest.raises(ValueError, match="do not fit the cache of layer 0"):
        rig.cache.update(taken["key"][keys], taken["value"][values], 0)


def attend(rig: AttentionRig, **changed: torch.Tensor) -> torch.Tensor:
    taken = {"key": rig.cache.keys[0], "value": rig.cache.values[0], **changed}
    query = taken.setdefault("query", tensors_of(rig)["query"][:, :, :17])
    output, _ = rig.attention.function(
        torch.nn.Module(),
        query,
        taken["key"],
        taken["value"],
        None,
        attention_metadata=rig.cache.metadata,
    )
    return output


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_a_tensor_of_another_dtype_is_rejected(name: str) -> None:
    rig = make_rig([20])
    rig.step([(0, 17)])
    tensors = {"query": tensors_of(rig)["query"][:, :, :17], "key": rig.cache.keys[0]}
    other = tensors.get(name, rig.cache.values[0]).to(NARROW)
    assert torch.equal(attend(rig), attend(rig))
    with pytest.raises(TypeError, match=rf"all bfloat16 \(got .*{name} torch\.bfloat16"):
        attend(rig, **{name: other})


def test_a_tensor_on_another_device_is_rejected() -> None:
    """Its address is not valid on the CPU."""
    rig = make_rig([20])
    rig.step([(0, 17)])
    with pytest.raises(TypeError, match="on meta"):
        attend(rig, key=rig.cache.keys[0].to("meta"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("key", lambda tensor: tensor[:, :, :16]),
        ("key", lambda tensor: tensor.transpose(2, 3).contiguous().transpose(2, 3)),
        ("value", lambda tensor: tensor.transpose(2, 3).contiguous().transpose(2, 3)),
        ("key", lambda tensor: tensor[:, :1].contiguous()),
        ("value", lambda tensor: tensor[:, :, :8].contiguous()),
        ("value", lambda tensor: tensor[:1]),
        ("query", lambda tensor: tensor[:, :3]),
        ("query", lambda tensor: tensor[:, :, :16]),
        ("query", lambda tensor: tensor[..., :16]),
        ("query", lambda tensor: tensor.expand(2, -1, -1, -1)),
    ],
    ids=[
        "short keys",
        "keys with other strides",
        "values with other strides",
        "fewer heads of keys",
        "blocks of another size",
        "fewer blocks of values",
        "query heads without a key head",
        "fewer rows than tokens",
        "short queries",
        "two batches",
    ],
)
def test_tensors_that_do_not_fit_each_other_are_rejected(name: str, change: Any) -> None:
    rig = make_rig([20], head_dim=32)
    rig.step([(0, 17)])
    tensors = {
        "query": tensors_of(rig)["query"][:, :, :17],
        "key": rig.cache.keys[0],
        "value": rig.cache.values[0],
    }
    with pytest.raises(ValueError, match="cannot attend to a cache"):
        attend(rig, **{name: change(tensors[name])})
