"""One caller's wish, before it is tokenised and admitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from streaming.sampling_params import SamplingParams

ANYONE = "anyone"
"""The caller when no API keys are set."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue."""

    text: str
    param: ClassVar = "prompt"

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to continue, as they are."""

    token_ids: tuple[int, ...]
    param: ClassVar = "prompt"
    texts: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, to be written with the model's own template."""

    messages: tuple[ChatMessage, ...]
    param: ClassVar = "messages"

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(text for message in self.messages for text in (message.role, message.content))


Prompt = TextPrompt | TokenPrompt | ChatPrompt
"""`param` is the field that it came in; `texts` is all that has to be tokenised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate, and for whom.

    Attributes:
        owner: the caller; only it may read, resume and cancel the generation.
        model: the model that the caller wants; None takes what is served.
        metadata: the caller's own labels, given back as they came.
    """

    prompt: Prompt
    params: SamplingParams = field(default_factory=SamplingParams)
    owner: str = ANYONE
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
