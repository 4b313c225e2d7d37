"""A generation request and its prompt, before tokenisation and admission."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from streaming.chat.messages import ANY_TOOL, ChatMessage, Tool, ToolChoice
from streaming.sampling_params import SamplingParams, check_range

ANYONE = "anyone"
"""The caller of every request when the server has no API keys."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue, without a chat template."""

    text: str
    param: ClassVar = "prompt"

    @property
    def texts(self) -> tuple[str, ...]:
        """The text to be tokenised."""
        return (self.text,)


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to continue, used unchanged."""

    token_ids: tuple[int, ...]
    param: ClassVar = "prompt"
    texts: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, to be rendered with the model's chat template.

    Attributes:
        messages: the conversation, oldest message first.
        tools: tools that the answer may call.
        tool_choice: which of them it may or must call.
        parallel_tool_calls: whether the answer may contain several calls; None uses the default of
            the model's tool syntax.
        template_kwargs: extra variables for the template, a JSON object as text; "" for none.
        add_generation_prompt: end the prompt with the start of an assistant message.
        continue_final_message: leave the last message open, so that the answer continues it.
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
        """All texts that the template may render."""
        tools = (
            text for tool in self.tools for text in (tool.name, tool.description, tool.parameters)
        )
        messages = (text for message in self.messages for text in message.texts)
        template_kwargs = (self.template_kwargs,) if self.template_kwargs else ()
        return (*messages, *tools, *template_kwargs)


Prompt = TextPrompt | TokenPrompt | ChatPrompt
"""`param` names the field of the request; `texts` are the texts to be tokenised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate, and for whom.

    Attributes:
        prompt: text, token ids or a conversation.
        params: sampling parameters and stop conditions.
        caller: owner of the generation; only it may read, resume and cancel it.
        model: id of the requested model; None uses the served one.
        priority: requests of a higher priority run before all of lower priority, of any caller.
        timeout_s: seconds after which the generation ends with an error. None, or a value above
            the server's limit, uses that limit.
        metadata: the caller's labels, returned unchanged.
        max_priority: the highest priority; its negative is the lowest.

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

    def __post_init__(self) -> None:
        check_range("priority", self.priority, -self.max_priority, self.max_priority)
        if self.timeout_s is not None:
            check_range("timeout_s", self.timeout_s, 0.0, math.inf, above_low=True)
