"""Tokens that a grammar allows, in batches and for `model.generate()`."""

from __future__ import annotations

import pytest
import torch

from streaming.backend import FailedRow, SampledToken
from streaming.backends.sampling.logits_processors import RequestRules
from streaming.backends.sampling.row_failure import NOT_FINITE, RowFailed
from streaming.backends.sampling.sampler import Sampler
from streaming.backends.sampling.sampling import allowed_tokens
from streaming.backends.scripted import EOS
from streaming.errors import NoTokenAllowed
from streaming.output_constraint import Grammar, GrammarKind
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence
from tests.support import WordMatcher, chunk_of, make_sequence

A, B, X = b"abx"
VOCAB_SIZE = 257


class AnyOf:
    """Always allows the same tokens."""

    is_done = False

    def __init__(self, *token_ids: int) -> None:
        bits = torch.zeros(264, dtype=torch.uint8)
        bits[list(token_ids)] = 1
        powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])
        self._mask = bytes((bits.view(-1, 8) * powers).sum(dim=-1).tolist())

    def mask(self) -> bytes:
        return self._mask

    def accept(self, token_id: int) -> None:
        """Do nothing."""


def error_of(row: SampledToken | FailedRow) -> str:
    """Return the message of the failure that no token is allowed."""
    assert isinstance(row, FailedRow)
    assert isinstance(row.error, NoTokenAllowed)
    return str(row.error)


ANY_TEXT = Grammar(GrammarKind.REGEX, ".*")
"""The grammar of the parameters. The masks come from a double, which ignores it."""


def constrained(*token_ids: int, **params: object) -> Sequence:
    rules = SamplingParams(max_tokens=9, seed=0, grammar=ANY_TEXT, **params)  # type: ignore[arg-type]
    return make_sequence(params=rules, matcher=AnyOf(*token_ids))


def free(**params: object) -> Sequence:
    return make_sequence(params=SamplingParams(max_tokens=9, seed=0, **params))  # type: ignore[arg-type]


def allowed(sequence: Sequence, vocab_size: int = VOCAB_SIZE) -> list[int]:
    mask = allowed_tokens(chunk_of(sequence), vocab_size)
    assert mask is not None
    assert mask.shape == (vocab_size,)
    ids: list[int] = mask.nonzero().flatten().tolist()
    return ids


def sample(logits: torch.Tensor, *sequences: Sequence) -> list[SampledToken | FailedRow]:
    """Sample with a new sampler."""
    return Sampler().sample(logits, list(map(chunk_of, sequences)))


def sampled_ids(logits: torch.Tensor, *sequences: Sequence) -> list[int | None]:
    tokens = sample(logits, *sequences)
    return [token.token_id if isinstance(token, SampledToken) else None for token in tokens]


def test_without_a_grammar_there_is_no_mask():
    assert allowed_tokens(chunk_of(free()), VOCAB_SIZE) is None


@pytest.mark.parametrize("vocab_size", [B, B + 1, VOCAB_SIZE, 300])
def test_ids_beyond_tokenizer_or_model_are_not_allowed(vocab_size: int):
    expected = [token_id for token_id in (A, B, EOS) if token_id < vocab_size]
    assert allowed(constrained(A, B, EOS), vocab_size) == expected


def test_min_tokens_bans_end_tokens_where_others_are_allowed():
    rules = {"min_tokens": 2, "stop_token_ids": frozenset({B})}
    assert allowed(constrained(A, B, EOS, **rules)) == [A]
    assert allowed(constrained(B, EOS, **rules)) == [B, EOS]


# In the batch.


def test_greedy_takes_the_likeliest_allowed_token():
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, X] = 9.0
    logits[:, B] = 5.0
    assert sampled_ids(logits, constrained(A, B, temperature=0.0), free(temperature=0.0)) == [B, X]


def test_the_mask_takes_precedence_over_logit_bias_and_min_tokens():
    logits = torch.zeros(1, VOCAB_SIZE)
    bias = {X: 100.0, EOS: -100.0}
    sequence = constrained(EOS, temperature=0.0, logit_bias=bias, min_tokens=3)
    assert sampled_ids(logits, sequence) == [EOS]


@pytest.mark.parametrize("params", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.9}])
def test_only_allowed_tokens_are_sampled(params: dict[str, float]):
    for seed in range(30):
        logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 5
        rules = SamplingParams(temperature=2.0, max_tokens=9, seed=seed, **params)  # type: ignore[arg-type]
        sequence = make_sequence(params=rules, matcher=AnyOf(A, B))
        assert sampled_ids(logits, sequence)[0] in (A, B)


def test_a_row_without_a_grammar_is_as_it_is_alone():
    logits = torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    alone = sample(logits[1:].clone(), free(temperature=1.5, logprobs=3))
    together = sample(logits, constrained(A), free(temperature=1.5, logprobs=3))
    assert together[1:] == alone


def test_logprobs_are_the_models_own():
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, X] = 9.0
    (token,) = sample(logits, constrained(A, logprobs=1))
    assert isinstance(token, SampledToken)
    assert token.logprobs is not None
    assert token.logprobs.top[0].token_id == X
    assert token.logprobs.chosen.token_id == A


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 1.0}])
def test_a_row_without_an_allowed_token_fails_alone(params: dict[str, float]):
    sequences = [constrained(**params), constrained(A, **params)]
    failed, fine = sample(torch.zeros(2, VOCAB_SIZE), *sequences)
    assert error_of(failed) == "response_format: the grammar allows no token here"
    assert fine == SampledToken(A)


def test_a_token_that_the_model_excludes_is_never_sampled():
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, A] = -torch.inf
    (failed,) = sample(logits, constrained(A))
    assert error_of(failed) == "response_format: the grammar allows no token here"


def test_a_failure_of_the_grammar_of_calls_names_tools():
    sequence = make_sequence(params=SamplingParams(max_tokens=9, seed=0), matcher=AnyOf())
    (failed,) = sample(torch.zeros(1, VOCAB_SIZE), sequence)
    assert error_of(failed) == "tools: the grammar allows no token here"


def test_logits_that_are_not_finite_are_reported_as_such():
    logits = torch.full((1, VOCAB_SIZE), torch.nan)
    (row,) = sample(logits, constrained(A))
    assert row == NOT_FINITE


# For `model.generate()`.


def test_the_processor_keeps_allowed_tokens_only():
    chunk = chunk_of(make_sequence(matcher=WordMatcher("ab")))
    rules = RequestRules(lambda: chunk, torch.device("cpu"))
    scores = rules(torch.tensor([[0]]), torch.zeros(1, VOCAB_SIZE))
    assert (scores[0] == 0).nonzero().flatten().tolist() == [A]
    assert bool((scores[0, [B, EOS]] == -torch.inf).all())


def test_the_processors_raise_if_no_token_is_allowed():
    chunk = chunk_of(constrained())
    rules = RequestRules(lambda: chunk, torch.device("cpu"))
    with pytest.raises(RowFailed) as caught:
        rules(torch.tensor([[0]]), torch.zeros(1, VOCAB_SIZE))
    assert error_of(caught.value.row) == "response_format: the grammar allows no token here"
