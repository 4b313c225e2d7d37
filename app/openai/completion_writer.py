"""Writes the answers of `/v1/completions`, whole or chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, starmap
from typing import Literal

from app.openai.choice_writer import (
    MAX_CHUNK_TOKENS,
    NO_TOKENS,
    ChoiceWriter,
    outcome_of,
    text_of,
    tokens_of,
)
from app.openai.schemas.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from app.schemas.logprobs import clamp_logprob
from app.schemas.usage import TokenCounts, Usage
from streaming import (
    AsyncEngine,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Scores,
    TextPrompt,
    Tokens,
)

_FINISH_REASONS: dict[FinishReason, Literal["stop", "length"]] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}
"""`CANCELLED` is missing: no client is left to read its answer."""


class CompletionWriter(ChoiceWriter):
    """Writes completions of raw prompts, with the prompt in front (`echo`) if requested."""

    id_prefix = "cmpl"

    def __init__(
        self, body: CompletionRequest, engine: AsyncEngine, generations: Sequence[Generation]
    ) -> None:
        super().__init__(body, engine, generations)
        self._body = body
        self._engine = engine
        self._text_offsets = [0] * len(generations)
        self._has_echoed = [False] * len(generations)

    @property
    def wants_logprobs(self) -> bool:
        """Whether `logprobs` is given, 0 included."""
        return self._body.logprobs is not None

    def whole(self) -> str:
        """Return a `text_completion`."""
        choices = []
        for index, generation in enumerate(self._generations):
            prompt, tokens = self._scored_prompt(index), self._answer_tokens(generation.tokens)
            text = "" if self._body.is_prompt_only else generation.text
            choices.append(
                self._choice(
                    index,
                    text=self._echo(index) + text,
                    tokens=tokens,
                    scored=(prompt, tokens),
                    finish_reason=self._finish_reason(generation.outcome),
                )
            )
        completion = self._completion(choices)
        completion.usage = self._usage()
        return completion.model_dump_json(exclude_unset=True)

    def opening(self) -> Iterator[str]:
        """Yield the prompt of each choice, if the request has `echo`.

        With log probabilities the prompt is sent later, once the engine has scored it.
        """
        if self._body.echo and not self.wants_logprobs:
            for index in range(len(self._generations)):
                yield self._chunk(self._choice(index, text=self._echo(index)))

    def chunks(self, index: int, events: Sequence[Event]) -> Iterator[str]:
        """Yield the scored prompt first, if there is one, then a chunk with the new text."""
        yield from self._scored_echo(index)
        tokens = self._answer_tokens(tokens_of(events))
        text = "" if self._body.is_prompt_only else text_of(events)
        finish_reason = self._finish_reason(outcome_of(events))
        if text or (tokens and self.include_empty_deltas) or finish_reason is not None:
            yield self._chunk(
                self._choice(
                    index, text=text, tokens=tokens, scored=(tokens,), finish_reason=finish_reason
                )
            )

    def _scored_echo(self, index: int) -> Iterator[str]:
        prompt = self._scored_prompt(index)
        if not prompt or self._has_echoed[index]:
            return
        self._has_echoed[index] = True
        for start in range(0, len(prompt), MAX_CHUNK_TOKENS):
            part = prompt[start : start + MAX_CHUNK_TOKENS]
            yield self._chunk(self._choice(index, text=part.text, scored=(part,)))

    def _choice(
        self,
        index: int,
        *,
        text: str,
        tokens: Tokens = NO_TOKENS,
        scored: Sequence[Tokens] = (),
        finish_reason: Literal["stop", "length"] | None = None,
    ) -> CompletionChoice:
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(index, scored) if any(scored) else None,
            finish_reason=finish_reason,
        )
        if self._return_token_ids:
            choice.token_ids = tokens.ids
        return choice

    def _chunk(self, choice: CompletionChoice) -> str:
        completion = self._completion([choice])
        if self._include_usage:
            completion.usage = None  # null in every chunk but the last
        return completion.model_dump_json(exclude_unset=True)

    def _usage_chunk(self, usage: Usage) -> str:
        completion = self._completion([])
        completion.usage = usage
        return completion.model_dump_json(exclude_unset=True)

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            choices=choices,
        )

    def _echo(self, index: int) -> str:
        """Return the prompt that the text of a choice begins with, or an empty string."""
        if not self._body.echo:
            return ""
        if prompt := self._scored_prompt(index):
            return prompt.text  # the text that `text_offset` counts
        prompt_of_choice = self._body.prompts[index // self._num_choices_per_prompt]
        if isinstance(prompt_of_choice, TextPrompt):
            return prompt_of_choice.text
        return self._engine.tokenizer.decode(prompt_of_choice.token_ids)

    def _scored_prompt(self, index: int) -> Tokens:
        return self._generations[index].scored_prompt or NO_TOKENS

    def _answer_tokens(self, tokens: Tokens) -> Tokens:
        return NO_TOKENS if self._body.is_prompt_only else tokens

    def _finish_reason(self, outcome: Finished | Failed | None) -> Literal["stop", "length"] | None:
        if not isinstance(outcome, Finished):
            return None
        return "length" if self._body.is_prompt_only else _FINISH_REASONS[outcome.finish_reason]

    def _counts(self) -> TokenCounts:
        counts = super()._counts()
        return replace(counts, completion_tokens=0) if self._body.is_prompt_only else counts

    def _logprobs(self, index: int, scored: Iterable[Tokens]) -> CompletionLogprobs | None:
        """Return the tokens' log probabilities, and advance the choice's text offset past them."""
        if not self.wants_logprobs:
            return None
        logprobs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        columns = ((tokens.ids, tokens.texts(), tokens.scores()) for tokens in scored)
        for token_id, text, scores in chain.from_iterable(starmap(zip, columns)):
            logprobs.tokens.append(self._token_text(token_id))
            logprobs.token_logprobs.append(clamp_logprob(scores[0][1]) if scores else None)
            logprobs.top_logprobs.append(self._top_logprobs(scores) if scores else None)
            logprobs.text_offset.append(self._text_offsets[index])
            self._text_offsets[index] += len(text)
        return logprobs

    def _top_logprobs(self, scores: Scores) -> dict[str, float]:
        """Return log probabilities by token text, the highest where several tokens share a text."""
        top: dict[str, float] = {}
        chosen, *likeliest = scores
        for token_id, logprob in (*likeliest, chosen):
            top.setdefault(self._token_text(token_id), clamp_logprob(logprob))
        return top
