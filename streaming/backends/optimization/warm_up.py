"""The first steps of a runner, before anybody waits for them."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf

from streaming.backend import Batch, Chunk, FailedRow, ModelInfo, ModelRunner
from streaming.log.generation import Generation
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence

_NUM_PROMPT_TOKENS = 32


class WarmUpFailed(RuntimeError):
    """The model does not work; the text says why."""


def warm_up(runner: ModelRunner, info: ModelInfo) -> None:
    """Run a prompt and one more step, so that the first request does not pay for what is lazy.

    Raises:
        WarmUpFailed: the model's first tokens are none.
        Exception: whatever else the model fails with; it does not work then.
    """
    room = max(1, info.max_model_len - 2)
    sequence = dry_sequence(range(min(_NUM_PROMPT_TOKENS, room, info.vocab_size)))
    if runner.cache is not None:
        sequence.block_table.block_ids = list(range(runner.cache.num_blocks))
    try:
        for start, num_tokens in ((0, sequence.num_tokens), (sequence.num_tokens, 1)):
            (token,) = runner.run(Batch((Chunk(sequence, start, num_tokens),)))
            if isinstance(token, FailedRow):
                raise WarmUpFailed(token.reason)
            sequence.append(token.token_id, at=0.0)
    finally:
        runner.release(sequence)


def dry_sequence(prompt_ids: SequenceOf[int]) -> Sequence:
    """Return a sequence that no client asked for."""
    generation = Generation(
        generation_id="warm-up",
        caller="",
        model="",
        created_at=0.0,
        submitted_at=0.0,
        prompt_tokens=len(prompt_ids),
    )
    return Sequence(
        generation=generation,
        prompt_ids=prompt_ids,
        params=SamplingParams(max_tokens=3, seed=0, top_p=0.9, logprobs=1),
        eos_token_ids=frozenset(),
        decode=lambda _: "",
        deadline_at=math.inf,
    )
