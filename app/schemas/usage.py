"""Counts the tokens of a request, and reports them in the form of OpenAI's completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, Field

from streaming import Generation, OutputParser


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """The number of tokens of one request.

    Attributes:
        prompt_tokens: of all prompts. A prompt counts once, however many choices it has.
        cached_tokens: those of `prompt_tokens` that came from the prefix cache.
        completion_tokens: of all choices.
        reasoning_tokens: those of `completion_tokens` that are reasoning.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int

    @classmethod
    def of(cls, generations: Sequence[Generation], *, num_per_prompt: int = 1) -> Self:
        """Return the counts of some generations.

        Args:
            generations: those of one prompt are next to each other.
            num_per_prompt: number of generations for each prompt.
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
    """Return the number of reasoning tokens of a generation, including the tags around it."""
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
            break  # an answer has one block of reasoning, at its start
    return num_reasoning


class PromptTokensDetails(BaseModel):
    """Parts of `prompt_tokens`."""

    cached_tokens: int = Field(description="Prompt tokens from the prefix cache.")


class CompletionTokensDetails(BaseModel):
    """Parts of `completion_tokens`."""

    reasoning_tokens: int = Field(description="Reasoning tokens, including its tags.")


class Usage(BaseModel):
    """Tokens of all choices together. A prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails

    @classmethod
    def of(cls, counts: TokenCounts) -> Self:
        """Return the counts in OpenAI's form."""
        return cls(
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            total_tokens=counts.prompt_tokens + counts.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=counts.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=counts.reasoning_tokens
            ),
        )
