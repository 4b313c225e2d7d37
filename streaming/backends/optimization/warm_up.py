"""Runs the first steps of a runner while it is loaded, and makes dummy chunks for this."""

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
    """The model returned no token; the message says why."""


def warm_up(runner: ModelRunner, info: ModelInfo) -> None:
    """Run a prefill and a decode, so that the first request does not wait for lazy initialization.

    Args:
        runner: runs the steps.
        info: limits the tokens of the prompt, and their ids.

    Raises:
        WarmUpFailed: the runner returned a failed row.
        Exception: any exception of the model.
    """
    max_prompt_tokens = max(1, info.max_model_len - 2)
    num_prompt_tokens = min(_NUM_PROMPT_TOKENS, max_prompt_tokens, info.vocab_size)
    block_ids = () if runner.cache is None else tuple(range(runner.cache.num_blocks))
    token_ids = list(range(num_prompt_tokens))
    try:
        for start in (0, num_prompt_tokens):
            chunk = dummy_chunk(
                token_ids, start=start, block_ids=block_ids, num_prompt_tokens=num_prompt_tokens
            )
            (token,) = runner.run(Batch((chunk,)))
            if isinstance(token, FailedRow):
                raise WarmUpFailed(token.reason)
            token_ids.append(token.token_id)
    finally:
        runner.release(_GENERATION_ID)


def dummy_chunk(
    token_ids: SequenceOf[int],
    *,
    start: int,
    end: int | None = None,
    block_ids: SequenceOf[int] = (),
    num_prompt_tokens: int | None = None,
    generation_id: str = _GENERATION_ID,
) -> Chunk:
    """Return a chunk of a sequence that belongs to no request, to run a model while it is loaded.

    Args:
        token_ids: prompt and output.
        start: position of the chunk's first token.
        end: position after its last token; None means the end of `token_ids`. A chunk that ends
            there yields a token.
        block_ids: cache blocks of the sequence.
        num_prompt_tokens: tokens of the prompt; None means all of `token_ids`.
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
