"""How a batch becomes one row of tokens, with positions, cache slots and attention metadata."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streaming.backend import Batch, Chunk
from streaming.backends.attention.model_input import prepare_inputs
from streaming.backends.optimization.warm_up import dummy_chunk
from tests.streaming.backends.attentions import BLOCK_SIZES, attention_named

CPU = torch.device("cpu")


def chunk_over(token_ids: list[int], block_ids: list[int], start: int, num_tokens: int) -> Chunk:
    return dummy_chunk(token_ids, start=start, end=start + num_tokens, block_ids=block_ids)


def make_cache(name: str) -> Any:
    return attention_named(name).make_cache(8, BLOCK_SIZES[name])


@pytest.mark.parametrize("name", BLOCK_SIZES)
def test_chunks_are_concatenated_in_one_row(name: str) -> None:
    size = BLOCK_SIZES[name]
    decode = chunk_over([7, 8, 9], [5], 2, 1)
    prefill = chunk_over(list(range(20, 20 + size + 2)), [1, 3], size - 1, 3)
    unfinished = chunk_over([40, 41, 42], [0], 0, 2)
    model_input = prepare_inputs(
        Batch((decode, prefill, unfinished)), cache=make_cache(name), device=CPU
    )
    assert model_input.token_ids.tolist() == [[9, 19 + size, 20 + size, 21 + size, 40, 41]]
    assert model_input.positions.tolist() == [[2, size - 1, size, size + 1, 0, 1]]
    assert model_input.attention_metadata.slots.tolist() == [
        5 * size + 2,
        1 * size + size - 1,
        3 * size,
        3 * size + 1,
        0,
        1,
    ]
    assert model_input.logits_rows.tolist() == [0, 3]
    assert model_input.yielding == (decode, prefill)
    assert model_input.scored == ()


def test_a_step_that_yields_no_token_computes_the_logits_of_one_row() -> None:
    chunk = chunk_over([1, 2, 3], [0], 0, 2)
    model_input = prepare_inputs(Batch((chunk,)), cache=make_cache("torch"), device=CPU)
    assert model_input.logits_rows.tolist() == [0]
    assert model_input.yielding == ()


@pytest.mark.parametrize("name", BLOCK_SIZES)
@pytest.mark.parametrize(("num_tokens", "num_rows"), [(16, 16), (17, 18), (33, 36), (45, 48)])
def test_rows_are_padded_to_a_bucket(name: str, num_tokens: int, num_rows: int) -> None:
    size = BLOCK_SIZES[name]
    token_ids, block_ids = list(range(100, 100 + num_tokens)), list(range(-(-num_tokens // size)))
    model_input = prepare_inputs(
        Batch((chunk_over(token_ids, block_ids, 0, num_tokens),)),
        cache=attention_named(name).make_cache(-(-num_tokens // size), size),
        device=CPU,
    )
    num_padding = num_rows - num_tokens
    assert model_input.token_ids.tolist() == [[*range(100, 100 + num_tokens), *[0] * num_padding]]
    assert model_input.positions.tolist() == [[*range(num_tokens), *[0] * num_padding]]
    assert model_input.attention_metadata.slots.tolist() == list(range(num_tokens))
    assert model_input.logits_rows.tolist() == [num_tokens - 1]


def test_rows_of_logits_are_padded_to_a_bucket() -> None:
    decodes = tuple(chunk_over([7, 8], [block], 1, 1) for block in range(18))
    model_input = prepare_inputs(
        Batch((*decodes, chunk_over([1], [18], 0, 1))),
        cache=attention_named("torch").make_cache(19, 4),
        device=CPU,
    )
    assert len(model_input.yielding) == 19
    assert model_input.logits_rows.tolist() == [*range(19), 0]


def test_tiled_attention_orders_decodes_before_prefills_and_by_length() -> None:
    long = chunk_over(list(range(70)), list(range(18)), 69, 1)
    prefill = chunk_over([1, 2, 3], [20], 0, 3)
    short = chunk_over([1, 2], [21], 1, 1)
    model_input = prepare_inputs(
        Batch((long, prefill, short)), cache=make_cache("torch"), device=CPU
    )
    assert model_input.yielding == (short, long, prefill)
    assert [(g.start, g.num_seqs, g.num_new) for g in model_input.attention_metadata.groups] == [
        (0, 1, 1),
        (1, 1, 1),
        (2, 1, 3),
    ]


def test_fresh_blocks_are_those_begun_and_not_filled() -> None:
    fills = chunk_over([1, 2, 3, 4], [3], 0, 4)
    begins = chunk_over([1, 2, 3, 4, 5], [4, 6], 4, 1)
    continues = chunk_over([1, 2, 3], [5], 2, 1)
    model_input = prepare_inputs(
        Batch((fills, begins, continues)), cache=make_cache("torch"), device=CPU
    )
    assert model_input.attention_metadata.fresh_blocks.tolist() == [6]


def test_native_metadata_describes_each_chunk_and_its_begun_blocks() -> None:
    first = chunk_over(list(range(18)), [7, 2, 4], 16, 2)
    second = chunk_over([1, 2, 3], [6], 2, 1)
    model_input = prepare_inputs(Batch((first, second)), cache=make_cache("native"), device=CPU)
    assert model_input.attention_metadata.chunks.view(-1, 4).tolist() == [
        [0, 2, 18, 0],
        [2, 1, 3, 2],
    ]
    assert model_input.attention_metadata.tables.tolist() == [7, 2, 6]
