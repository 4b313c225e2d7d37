"""What a request used, counted from its logs, and how OpenAI's completions show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, Field

from streaming import Generation, OutputParser


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens of one request.

    Attributes:
        prompt_tokens: each prompt once, however many answers it has.
        cached_tokens: those of them that came from the prefix cache.
        reasoning_tokens: those of `completion_tokens` that are reasoning.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int

    @classmethod
    def of(cls, generations: Sequence[Generation], *, num_per_prompt: int = 1) -> Self:
        """Count logs.

        Args:
            num_per_prompt: so many logs one after the other have the same prompt.
        """
        usages = [generation.usage for generation in generations]
        firsts = usages[::num_per_prompt]
        return cls(
            prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
            cached_tokens=sum(usage.cached_tokens for usage in firsts),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            reasoning_tokens=sum(map(count_reasoning_tokens, generations)),
        )


def count_reasoning_tokens(generation: Generation) -> int:
    """Return how many tokens of a log are reasoning, with the marks around it."""
    if generation.output_format.reasoning is None:
        return 0
    parser = OutputParser(generation.output_format)
    num_reasoning = 0
    for num_read, text in enumerate(generation.tokens.texts(), 1):
        was_in_reasoning = parser.is_in_reasoning
        parser.feed(text)
        if was_in_reasoning or parser.is_in_reasoning:
            num_reasoning = num_read
        elif num_reasoning:
            break  # reasoning comes first, and once
    return num_reasoning


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Not computed again: another prompt began alike.")


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int = Field(description="Tokens of the reasoning, with its marks.")


class Usage(BaseModel):
    """Of all choices together; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails

    @classmethod
    def of(cls, counts: TokenCounts) -> Self:
        return cls(
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            total_tokens=counts.prompt_tokens + counts.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=counts.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=counts.reasoning_tokens
            ),
        )
