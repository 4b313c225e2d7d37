"""Log probabilities in answers, for all dialects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap
from typing import Self

from pydantic import BaseModel, Field

from streaming import Scores, Tokens

MIN_LOGPROB = -9999.0
"""Replaces minus infinity, which JSON does not have."""


def clamp_logprob(logprob: float) -> float:
    """Return a finite log probability, at least `MIN_LOGPROB`."""
    return max(MIN_LOGPROB, logprob)


class TopLogprob(BaseModel):
    """A token and its natural log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(
        description="The UTF-8 bytes of the token, possibly a part of a character. Null if the "
        "tokenizer does not know them."
    )


class ChatTokenLogprob(TopLogprob):
    """The chosen token and the likeliest alternatives."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens, best first.")


class ChatLogprobs(BaseModel):
    """OpenAI's newer form: one entry for each token, including tool calls and end tokens."""

    content: list[ChatTokenLogprob]
    refusal: None = Field(None, description="Always null.")

    @classmethod
    def of(
        cls,
        tokens: Tokens,
        *,
        token_text: Callable[[int], str],
        token_bytes: Callable[[int], bytes | None],
    ) -> Self:
        """Return the log probabilities; tokens without any are left out."""

        def top(token_id: int, logprob: float) -> TopLogprob:
            utf8 = token_bytes(token_id)
            return TopLogprob(
                token=token_text(token_id),
                logprob=clamp_logprob(logprob),
                bytes=None if utf8 is None else list(utf8),
            )

        def of_token(scores: Scores) -> ChatTokenLogprob:
            chosen, *others = starmap(top, scores)
            return ChatTokenLogprob(
                token=chosen.token,
                logprob=chosen.logprob,
                bytes=chosen.bytes,
                top_logprobs=others,
            )

        return cls(content=[of_token(scores) for scores in tokens.scores() if scores], refusal=None)
