"""Logs in the form of OpenAI's choices: what its two dialects of them share."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from app.openai.schemas.choices import ChoiceFields
from app.schemas.usage import TokenCounts, Usage
from streaming import AsyncEngine, Delta, Ended, Event, Failed, Finished, Generation, Tokens

MAX_CHUNK_TOKENS = 256
"""What piled up for a slow client is cut into chunks: with log probabilities, to write it all at
once would hold up everyone else."""
NO_TOKENS = Tokens.of(())


class ChoiceWriter(ABC):
    """Writes the answer to one request, as JSON.

    Fields that were not asked for are not written, so a model's fields are set one by one.

    Args:
        body: the request.
        engine: knows how tokens are written.
        generations: the logs, in the order of the choices.
    """

    id_prefix: str

    def __init__(
        self, body: ChoiceFields, engine: AsyncEngine, generations: Sequence[Generation]
    ) -> None:
        self._generations = generations
        self._include_usage = body.include_usage
        self._return_token_ids = bool(body.return_token_ids)
        self._num_choices_per_prompt = body.num_choices_per_prompt
        self._id = f"{self.id_prefix}-{secrets.token_urlsafe(12)}"
        self._created = int(generations[0].created_at)
        self._model = generations[0].model
        # Alternatives repeat, and each token takes the tokenizer two decodings.
        self._token_text = cache(engine.tokenizer.token_text)

    @property
    @abstractmethod
    def wants_logprobs(self) -> bool:
        """Whether choices have log probabilities."""

    @property
    def include_empty_deltas(self) -> bool:
        """Whether tokens that show no text are shown all the same."""
        return self.wants_logprobs or self._return_token_ids

    @abstractmethod
    def whole(self) -> str:
        """Return the answer; every log has ended well."""

    def opening(self) -> Iterable[str]:
        """Return what is sent before anything has been generated."""
        return ()

    @abstractmethod
    def chunks(self, index: int, events: Sequence[Event]) -> Iterator[str]:
        """Yield the chunks for what came of one choice."""

    def closing(self) -> Iterator[str]:
        """Yield what is sent after all choices have ended: the usage, where that is asked for."""
        if self._include_usage:
            yield self._usage_chunk(self._usage())

    @abstractmethod
    def _usage_chunk(self, usage: Usage) -> str:
        """Return a chunk without choices."""

    def _usage(self) -> Usage:
        return Usage.of(self._counts())

    def _counts(self) -> TokenCounts:
        return TokenCounts.of(self._generations, num_per_prompt=self._num_choices_per_prompt)


def cut(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Yield the events of one log in parts of no more tokens than a chunk may have."""
    part: list[Event] = []
    for event in events:
        if not isinstance(event, Delta):
            part.append(event)
            continue
        for place, delta in enumerate(event.cut(max_tokens=MAX_CHUNK_TOKENS)):
            if place:
                yield part
                part = []
            part.append(delta)
    yield part


def tokens_of(events: Iterable[Event]) -> Tokens:
    """Return the tokens of events that were read at once: there is one delta at most."""
    [tokens] = [event.tokens for event in events if isinstance(event, Delta)] or [NO_TOKENS]
    return tokens


def text_of(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def outcome_of(events: Sequence[Event]) -> Finished | Failed | None:
    """Return what a log ended with, if these events hold its end."""
    last = events[-1]
    return last.record if isinstance(last, Ended) else None
