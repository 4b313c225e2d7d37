"""The first steps of a runner, which run while it is loaded."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from streaming.backend import (
    Batch,
    Chunk,
    FailedRow,
    ModelInfo,
    ModelRunner,
    SequenceInput,
)
from streaming.sampling_params import SamplingParams

_NUM_PROMPT_TOKENS = 32
_GENERATION_ID = "warm-up"
_PARAMS = SamplingParams(max_tokens=3, seed=0, top_p=0.9, logprobs=1)


class WarmUpFailed(RuntimeError):
    """The model gives no token; the text says why."""


def warm_up(runner: ModelRunner, info: ModelInfo) -> None:
    """Run a prompt and one more step, so that the first request does not pay for what is lazy.

    Raises:
        WarmUpFailed: the runner returns a failed row.
        Exception: whatever else the model raises.
    """
    room = max(1, info.max_model_len - 2)
    num_prompt_tokens = min(_NUM_PROMPT_TOKENS, room, info.vocab_size)
    block_ids = () if runner.cache is None else tuple(range(runner.cache.num_blocks))
    token_ids = list(range(num_prompt_tokens))
    try:
        for start in (0, num_prompt_tokens):
            chunk = dry_chunk(
                token_ids, start=start, block_ids=block_ids, num_prompt_tokens=num_prompt_tokens
            )
            (token,) = runner.run(Batch((chunk,)))
            if isinstance(token, FailedRow):
                raise WarmUpFailed(token.reason)
            token_ids.append(token.token_id)
    finally:
        runner.release(_GENERATION_ID)


def dry_chunk(
    token_ids: SequenceOf[int],
    *,
    start: int,
    end: int | None = None,
    block_ids: SequenceOf[int] = (),
    num_prompt_tokens: int | None = None,
    generation_id: str = _GENERATION_ID,
) -> Chunk:
    """Return a chunk of a sequence without a request, to run a model at load.

    Args:
        token_ids: prompt and output.
        start: position of the chunk's first token.
        end: position after its last one; None means the end of `token_ids`. A chunk that ends
            there yields a token.
        block_ids: cache blocks of the sequence.
        num_prompt_tokens: tokens of the prompt; None means all.
        generation_id: of the sequence.
    """
    num_tokens = len(token_ids)
    end = num_tokens if end is None else end
    sequence = SequenceInput(
        generation_id=generation_id,
        num_prompt_tokens=num_tokens if num_prompt_tokens is None else num_prompt_tokens,
        params=_PARAMS,
    )
    is_last = end == num_tokens
    return Chunk(sequence, start, tuple(token_ids[start:end]), tuple(block_ids), is_last)
