"""The common base of the writers for `/v1/completions` and `/v1/chat/completions`.

A writer turns the generations of one request into OpenAI's JSON.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from app.openai.schemas.choices import ChoiceFields
from app.schemas.usage import TokenCounts, Usage
from streaming import AsyncEngine, Delta, Ended, Event, Failed, Finished, Generation, Tokens

MAX_CHUNK_TOKENS = 256
"""Most tokens of a chunk. A slow client's backlog is split into such chunks: serializing all of it
at once, with log probabilities, would block the event loop."""
NO_TOKENS = Tokens.of(())


class ChoiceWriter(ABC):
    """Writes the answer to one request as JSON: all of it (`whole`), or chunk by chunk.

    Subclasses serialize with `exclude_unset`, so a field that was not requested must stay unset.

    Args:
        body: the request.
        engine: its tokenizer gives the texts of tokens.
        generations: in the order of the choices.

    Attributes:
        id_prefix: what the id of the answer begins with.
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
        # Cached: alternatives repeat, and the tokenizer decodes twice for each token.
        self._token_text = cache(engine.tokenizer.token_text)

    @property
    @abstractmethod
    def wants_logprobs(self) -> bool:
        """Whether the request asks for log probabilities."""

    @property
    def include_empty_deltas(self) -> bool:
        """Whether to send a chunk for tokens that complete no text: it has their ids or scores."""
        return self.wants_logprobs or self._return_token_ids

    @abstractmethod
    def whole(self) -> str:
        """Return the whole answer; every generation must have finished without an error."""

    def opening(self) -> Iterable[str]:
        """Return the chunks to send before the first token."""
        return ()

    @abstractmethod
    def chunks(self, index: int, events: Sequence[Event]) -> Iterator[str]:
        """Yield the chunks for new events of the choice with this index."""

    def closing(self) -> Iterator[str]:
        """Yield the chunk to send after the last choice: the usage, if the request asks for it."""
        if self._include_usage:
            yield self._usage_chunk(self._usage())

    @abstractmethod
    def _usage_chunk(self, usage: Usage) -> str:
        """Return the chunk that reports the usage and has no choices."""

    def _usage(self) -> Usage:
        return Usage.of(self._counts())

    def _counts(self) -> TokenCounts:
        return TokenCounts.of(self._generations, num_per_prompt=self._num_choices_per_prompt)


def split_events(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Yield the events of one generation in parts of at most `MAX_CHUNK_TOKENS` tokens."""
    part: list[Event] = []
    for event in events:
        if not isinstance(event, Delta):
            part.append(event)
            continue
        for index, delta in enumerate(event.cut(max_tokens=MAX_CHUNK_TOKENS)):
            if index:
                yield part
                part = []
            part.append(delta)
    yield part


def tokens_of(events: Iterable[Event]) -> Tokens:
    """Return the tokens of one part of `split_events`, which has at most one delta."""
    [tokens] = [event.tokens for event in events if isinstance(event, Delta)] or [NO_TOKENS]
    return tokens


def text_of(events: Iterable[Event]) -> str:
    """Return the joined text of the deltas."""
    return "".join(event.text for event in events if isinstance(event, Delta))


def outcome_of(events: Sequence[Event]) -> Finished | Failed | None:
    """Return how the generation ended, or None if these events do not include its end."""
    last = events[-1]
    return last.record if isinstance(last, Ended) else None
