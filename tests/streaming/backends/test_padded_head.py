"""Models whose head has rows for ids that they cannot read never write one of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming import Generation, SamplingParams
from streaming.backend import Backend, ModelRunner
from streaming.backends.batched import BatchedRunner
from streaming.backends.generate import GenerateRunner
from streaming.backends.scripted import scripted_backend
from streaming.log.generation import Token
from tests.streaming.backends import tiny_models
from tests.streaming.backends.rig import EngineRig, ending
from tests.support import property_test_of

VOCAB_SIZE, NUM_PADDING_ROWS = 257, 7


def padded_model() -> Any:
    """Return a model whose head would choose nothing but padding."""
    model = tiny_models.random_model(tiny_models.llama_config(VOCAB_SIZE))
    plain = model.lm_head.weight
    padded = torch.nn.Linear(plain.shape[1], VOCAB_SIZE + NUM_PADDING_ROWS)
    with torch.no_grad():
        padded.weight.zero_()
        padded.weight[:VOCAB_SIZE] = plain
        padded.bias.zero_()
        padded.bias[VOCAB_SIZE:] = torch.tensor([1e4] * (NUM_PADDING_ROWS - 1) + [torch.nan])
    model.lm_head = padded
    return model


def plain_model() -> Any:
    """Return the same model, to the bit, without its padding."""
    model = padded_model()
    model.lm_head.register_forward_hook(lambda _, __, logits: logits[..., :VOCAB_SIZE])
    return model


class AllowsPadding:
    """A matcher that lets every bit through, of ids beyond the vocabulary, too."""

    is_done = False

    def mask(self) -> bytes:
        return b"\xff" * 64

    def accept(self, token_id: int) -> None:
        """Nothing changes."""


RUNNERS: dict[str, Callable[[Any], ModelRunner]] = {
    "batched": lambda model: BatchedRunner(model, num_blocks=64),
    "generate": GenerateRunner,
}


@pytest.fixture(scope="module", params=RUNNERS)
def rigs(request: pytest.FixtureRequest) -> Iterator[tuple[EngineRig, EngineRig]]:
    """Return an engine over a model with a padded head, and one over the same model without."""
    scripted = scripted_backend()
    assert scripted.info.vocab_size == VOCAB_SIZE
    padded, plain = (
        EngineRig(
            Backend(
                info=scripted.info,
                tokenizer=scripted.tokenizer,
                runner=RUNNERS[request.param](model),
            )
        )
        for model in (padded_model(), plain_model())
    )
    yield padded, plain
    padded.backend.runner.close()
    plain.backend.runner.close()


def run(rig: EngineRig, rules: SamplingParams, *, has_grammar: bool) -> Generation:
    sequence = rig.add(rules)
    if has_grammar:
        sequence.matcher = AllowsPadding()
    while rig.engine.has_work:
        rig.engine.step()
    return sequence.generation


def ids_of(token: Token) -> list[int]:
    """Return every id that a token tells of."""
    top = () if token.logprobs is None else token.logprobs.top
    return [token.token_id, *(choice.token_id for choice in top)]


rules = st.builds(
    SamplingParams,
    max_tokens=st.just(4),
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.0, 1.0, 2.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([0.5, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    presence_penalty=st.sampled_from([0.0, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.just(-100.0), max_size=3),
    logprobs=st.sampled_from([None, 20]),
    prompt_logprobs=st.sampled_from([None, 20]),
    min_tokens=st.sampled_from([0, 2]),
    stop_token_ids=st.frozensets(st.integers(0, VOCAB_SIZE - 1), max_size=2),
)


@property_test_of(40)
@given(rules, st.booleans())
def test_padding_is_never_written_nor_reported(
    rigs: tuple[EngineRig, EngineRig], params: SamplingParams, has_grammar: bool
) -> None:
    """An answer is what it is without the padding."""
    padded, plain = (run(rig, params, has_grammar=has_grammar) for rig in rigs)
    assert ending(padded) in ("stop", "length")
    tokens = (*padded.tokens, *(padded.scored_prompt or ()))
    assert all(token_id < VOCAB_SIZE for token in tokens for token_id in ids_of(token))
    assert list(map(ids_of, tokens)) == [
        ids_of(token) for token in (*plain.tokens, *(plain.scored_prompt or ()))
    ]
