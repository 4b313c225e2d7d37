"""Penalties equal their formulas, and the cost of a step does not grow with the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, SupportsIndex, overload

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming import SamplingParams
from streaming.backend import TokenView
from streaming.backends.sampling.penalties import Penalties
from streaming.backends.sampling.sampler import Sampler
from streaming.sequence import Sequence
from tests.support import chunk_of, make_sequence, property_test

VOCAB_SIZE = 300
CPU = torch.device("cpu")


def sequence_with(
    prompt: str = "\x00\x01", *, generation_id: str = "gen_1", **params: Any
) -> Sequence:
    params = {"max_tokens": 999, "seed": 0} | params
    return make_sequence(generation_id, prompt=prompt, params=SamplingParams(**params))


def take(sequence: Sequence, *token_ids: int) -> None:
    """Append tokens to the output."""
    sequence.output_ids.extend(token_ids)
    sequence.token_ids.extend(token_ids)


def penalties_of(sequence: Sequence) -> Penalties:
    return Penalties(sequence.input, device=CPU)


def penalized(penalties: Penalties, sequence: Sequence, logits: list[float]) -> list[float]:
    row = torch.tensor(logits, dtype=torch.float32)
    penalties.apply(row, sequence.token_ids)
    values: list[float] = row.tolist()
    return values


def by_the_formulas(logits: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """Compute the logits from the whole text."""
    params, logits = sequence.params, logits.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*sequence.prompt_ids, *sequence.output_ids}))
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sequence.output_ids and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(sequence.output_ids)
        ids, times = torch.tensor([*counts]), torch.tensor([*counts.values()]).float()
        logits[ids] -= params.presence_penalty + params.frequency_penalty * times
    return logits


def test_presence_and_frequency_count_the_output_only() -> None:
    sequence = sequence_with(presence_penalty=1.0, frequency_penalty=0.25)
    penalties = penalties_of(sequence)
    assert penalized(penalties, sequence, [0, 0, 0, 0]) == [0, 0, 0, 0]
    take(sequence, 3)
    assert penalized(penalties, sequence, [0, 0, 0, 0]) == [0, 0, 0, -1.25]
    take(sequence, 3, 0)
    assert penalized(penalties, sequence, [0, 0, 0, 0]) == [-1.25, 0, 0, -1.5]


def test_repetition_penalty_covers_prompt_and_output() -> None:
    sequence = sequence_with(repetition_penalty=2.0)
    penalties = penalties_of(sequence)
    assert penalized(penalties, sequence, [4, -4, 4, -4]) == [2, -8, 4, -4]
    take(sequence, 3)
    assert penalized(penalties, sequence, [4, -4, 4, -4]) == [2, -8, 4, -8]


params = st.fixed_dictionaries(
    {
        "presence_penalty": st.sampled_from([0.0, 1.1, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.3, -0.7]),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.01, 10.0]),
    }
)


@property_test
@given(
    params,
    st.text(st.characters(max_codepoint=40), min_size=1, max_size=9),
    st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=100), max_size=6),
    st.integers(0, 99),
)
def test_incremental_penalties_equal_those_of_the_whole_text_to_the_bit(
    given_params: dict[str, Any], prompt: str, steps: list[list[int]], seed: int
) -> None:
    """Also when several tokens are added between two calls, as after a preemption."""
    generator = torch.Generator().manual_seed(seed)
    sequence = sequence_with(prompt, **given_params)
    penalties = penalties_of(sequence)
    for new_ids in steps:
        take(sequence, *new_ids)
        logits = 5.0 * torch.randn(VOCAB_SIZE, generator=generator)
        expected = by_the_formulas(logits, sequence)
        penalties.apply(logits, sequence.token_ids)
        assert torch.equal(logits, expected)


@property_test
@given(params, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=30))
def test_preempted_sequences_with_the_same_prompt_do_not_share_counts(
    given_params: dict[str, float], steps: list[tuple[int, int]]
) -> None:
    """A sampler that keeps the counts of two of five sequences drops the others repeatedly."""
    sampler = Sampler(max_penalized_seqs=2)
    rules = {"temperature": 0.0, "logprobs": 0, **given_params}
    sequences = [sequence_with("ab", generation_id=f"gen_{n}", **rules) for n in range(5)]
    for which, token_id in steps:
        batch = [sequence for index, sequence in enumerate(sequences) if index != which]
        logits = torch.randn(4, VOCAB_SIZE, generator=torch.Generator().manual_seed(token_id))
        expected = [by_the_formulas(row, each) for row, each in zip(logits, batch, strict=True)]
        sampler.sample(logits, list(map(chunk_of, batch)))
        assert torch.equal(logits, torch.stack(expected))
        assert len(sampler._penalties) <= 2
        for offset, sequence in enumerate(batch):
            take(sequence, (token_id + offset) % 41)


class CountingList(list[int]):
    """Counts how many of its elements are read."""

    num_read = 0

    @overload
    def __getitem__(self, at: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.num_read += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self) -> Iterator[int]:
        for item in super().__iter__():
            self.num_read += 1
            yield item


@pytest.mark.parametrize("num_prompt_tokens", [10, 5000])
@pytest.mark.parametrize(
    "rules", [{"repetition_penalty": 1.2}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.1}]
)
def test_a_step_reads_only_its_new_token(rules: dict[str, Any], num_prompt_tokens: int) -> None:
    sequence = sequence_with("x" * num_prompt_tokens, **rules)
    text_ids = CountingList(sequence.token_ids)
    sampler = Sampler()
    num_read = []
    for token_id in range(20):
        chunk = chunk_of(sequence)._replace(text_ids=TokenView(text_ids, len(text_ids)))
        text_ids.num_read = 0
        sampler.sample(torch.zeros(1, VOCAB_SIZE), [chunk])
        num_read.append(text_ids.num_read)
        take(sequence, token_id)
        text_ids.append(token_id)
    assert num_read[0] <= num_prompt_tokens
    assert num_read[1:] == [1] * 19


def test_counts_start_again_if_an_earlier_step_runs_again() -> None:
    sequence, sampler = sequence_with(frequency_penalty=1.0, temperature=0.0), Sampler()
    take(sequence, 5)
    earlier = chunk_of(sequence)
    take(sequence, 5, 6)
    rows = []
    for chunk in (earlier, chunk_of(sequence), earlier):
        logits = torch.zeros(1, VOCAB_SIZE)
        sampler.sample(logits, [chunk])
        rows.append(logits[0, 5:7].tolist())
    assert rows == [[-1, 0], [-2, -1], [-1, 0]]


def test_counts_of_an_ended_sequence_are_deleted() -> None:
    sampler = Sampler()
    chunk = chunk_of(sequence_with(repetition_penalty=1.2))
    sampler.sample(torch.zeros(1, VOCAB_SIZE), [chunk])
    assert list(sampler._penalties) == ["gen_1"]
    sampler.forget("gen_1")
    sampler.forget("gen_1")
    assert not sampler._penalties
