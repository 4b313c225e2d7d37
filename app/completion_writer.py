"""Logs in the form of OpenAI's completions: whole, or chunk by chunk."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Literal

from app.schemas.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionUsage,
    PromptTokensDetails,
)
from streaming import (
    AsyncEngine,
    Delta,
    Ended,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    TextPrompt,
    Token,
    TokenLogprobs,
)

_FINISH_REASONS: dict[FinishReason, Literal["stop", "length"]] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}
"""A cancelled completion has no client left to tell."""


class CompletionWriter:
    """Writes the answer to one request.

    Args:
        body: the request.
        engine: knows how tokens are written.
        generations: the logs, in the order of the choices.
    """

    def __init__(
        self, body: CompletionRequest, engine: AsyncEngine, generations: Sequence[Generation]
    ) -> None:
        self._body = body
        self._engine = engine
        self._generations = generations
        self._id = f"cmpl-{secrets.token_urlsafe(12)}"
        self._text_offsets = [0] * len(generations)

    def whole(self) -> Completion:
        """Return the answer; every log has ended well."""
        echoes = self._echoes()
        return self._completion(
            [
                CompletionChoice(
                    index=index,
                    text=echoes[index] + generation.text,
                    logprobs=self._logprobs(index, generation.tokens),
                    finish_reason=_finish_reason(generation.outcome),
                )
                for index, generation in enumerate(self._generations)
            ],
            usage=self._usage(),
        )

    def echo_chunks(self) -> list[str]:
        """Return one chunk for each choice with its prompt, where that is asked for."""
        if not self._body.echo:
            return []
        return [
            self._chunk(CompletionChoice(index=index, text=text))
            for index, text in enumerate(self._echoes())
        ]

    def chunk(self, index: int, events: Sequence[Event]) -> str | None:
        """Return the chunk for what came of one choice; None where it shows nothing."""
        deltas = [event for event in events if isinstance(event, Delta)]
        text = "".join(delta.text for delta in deltas)
        tokens = [token for delta in deltas for token in delta.tokens]
        logprobs = self._logprobs(index, tokens) if tokens else None
        last = events[-1]
        finish_reason = _finish_reason(last.record) if isinstance(last, Ended) else None
        if not text and logprobs is None and finish_reason is None:
            return None
        return self._chunk(
            CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish_reason)
        )

    def usage_chunk(self) -> str | None:
        """Return the chunk with the usage, where that is asked for."""
        if not self._body.include_usage:
            return None
        return self._completion([], usage=self._usage()).model_dump_json()

    def _chunk(self, choice: CompletionChoice) -> str:
        # With include_usage, all chunks have the field, and all but the last have it null.
        exclude = None if self._body.include_usage else {"usage"}
        return self._completion([choice]).model_dump_json(exclude=exclude)

    def _completion(
        self, choices: list[CompletionChoice], *, usage: CompletionUsage | None = None
    ) -> Completion:
        return Completion(
            id=self._id,
            created=int(self._generations[0].created_at),
            model=self._generations[0].model,
            choices=choices,
            usage=usage,
        )

    def _echoes(self) -> list[str]:
        """Return what each choice's text begins with."""
        if not self._body.echo:
            return [""] * len(self._generations)
        return [
            prompt.text
            if isinstance(prompt, TextPrompt)
            else self._engine.tokenizer.decode(prompt.token_ids)
            for prompt in self._body.prompts
            for _ in range(self._body.num_choices_per_prompt)
        ]

    def _usage(self) -> CompletionUsage:
        usages = [generation.usage for generation in self._generations]
        firsts = usages[:: self._body.num_choices_per_prompt]
        prompt_tokens = sum(usage.prompt_tokens for usage in firsts)
        completion_tokens = sum(usage.completion_tokens for usage in usages)
        return CompletionUsage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(usage.cached_tokens for usage in firsts)
            ),
        )

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> CompletionLogprobs | None:
        """Return the tokens in OpenAI's form, and move the choice's text offset past them."""
        if self._body.logprobs is None:
            return None
        token_text = self._engine.tokenizer.token_text
        logprobs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in tokens:
            assert token.logprobs is not None, "asked for with every token"
            logprobs.tokens.append(token_text(token.token_id))
            logprobs.token_logprobs.append(token.logprobs.chosen.logprob)
            logprobs.top_logprobs.append(self._top_logprobs(token.logprobs))
            logprobs.text_offset.append(self._text_offsets[index])
            self._text_offsets[index] += len(token.text)
        return logprobs

    def _top_logprobs(self, logprobs: TokenLogprobs) -> dict[str, float]:
        """Return log probabilities by token text; of tokens written alike, the likeliest counts."""
        top: dict[str, float] = {}
        for logprob in (*logprobs.top, logprobs.chosen):
            top.setdefault(self._engine.tokenizer.token_text(logprob.token_id), logprob.logprob)
        return top


def _finish_reason(outcome: Finished | Failed | None) -> Literal["stop", "length"] | None:
    return _FINISH_REASONS[outcome.finish_reason] if isinstance(outcome, Finished) else None
