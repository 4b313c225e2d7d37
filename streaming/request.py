"""One caller's wish, before it is tokenised and admitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from streaming.chat.messages import ANY_TOOL, ChatMessage, Tool, ToolChoice
from streaming.sampling_params import SamplingParams, check_range

ANYONE = "anyone"
"""The caller when no API keys are set."""


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
    """A conversation, to be written with the model's own template.

    Attributes:
        tools: what the answer may call.
        parallel_tool_calls: the answer may call several; None leaves it to the model's syntax.
        template_kwargs: more variables for the template, a JSON object as text; "" is none.
        add_generation_prompt: the text ends where the assistant's turn begins.
        continue_final_message: the text ends inside the last message, which the answer continues.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ANY_TOOL
    parallel_tool_calls: bool | None = None
    template_kwargs: str = ""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    param: ClassVar = "messages"

    @property
    def texts(self) -> tuple[str, ...]:
        tools = (
            text for tool in self.tools for text in (tool.name, tool.description, tool.parameters)
        )
        messages = (text for message in self.messages for text in message.texts)
        template_kwargs = (self.template_kwargs,) if self.template_kwargs else ()
        return (*messages, *tools, *template_kwargs)


Prompt = TextPrompt | TokenPrompt | ChatPrompt
"""`param` is the field that it came in; `texts` is all that has to be tokenised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate, and for whom.

    Attributes:
        caller: the caller; only it may read, resume and cancel the generation.
        model: the model that the caller wants; None takes what is served.
        priority: higher ones go before all lower ones; of the same caller or not.
        timeout_s: ends the generation with an error; None, or more than the server's own limit,
            leaves that limit.
        metadata: the caller's own labels, given back as they came.

    Raises:
        InvalidRequest: a value is out of range; `param` names the field.
    """

    prompt: Prompt
    params: SamplingParams = field(default_factory=SamplingParams)
    caller: str = ANYONE
    model: str | None = None
    priority: int = 0
    timeout_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    max_priority: ClassVar = 100
    """And its negative is the lowest."""

    def __post_init__(self) -> None:
        check_range("priority", self.priority, -self.max_priority, self.max_priority)
        if self.timeout_s is not None:
            check_range("timeout_s", self.timeout_s, 0.0, math.inf, above_low=True)
