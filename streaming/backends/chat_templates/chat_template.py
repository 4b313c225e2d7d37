"""Conversations as a model's own chat template writes them, tools and their calls included.

A template that writes no calls, or in a way that is not known here, is given none: tools are
described in the system turn, calls and results are written into the turns' text, in the syntax that
`ChatFormat` has for such models.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from streaming.backends.chat_templates.chat_turns import (
    Hide,
    Turn,
    describe_function,
    hide_message,
    load_hidden,
    plain_turns,
    with_instructions,
    with_single_calls,
    with_tool_names,
)
from streaming.backends.chat_templates.template_abilities import (
    Abilities,
    find_abilities,
    find_reasoning,
)
from streaming.backends.chat_templates.tool_description import describe_tools
from streaming.chat.format import TOLD, ChatFormat, may_call_tools
from streaming.chat.messages import ChatMessage, Tool, ToolCall
from streaming.chat.output_parser import OutputFormat
from streaming.errors import InvalidRequest
from streaming.request import ChatPrompt

_TOOL_TEMPLATE = "tool_use"
"""The name of the template for tools, where a tokenizer has several."""
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
"""Ids of calls as Mistral's templates want them."""


class TemplateRefusal(Exception):
    """The template did not write a conversation; the text says why."""


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a transformers tokenizer can write a conversation without being told how."""
    template = getattr(tokenizer, "chat_template", None)
    return "default" in template if isinstance(template, dict) else bool(template)


class ChatTemplate:
    """One tokenizer's template. Thread-safe.

    Args:
        tokenizer: a transformers tokenizer, with a template or without.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._hf = tokenizer
        self._reserved = _reserved_names(tokenizer)
        template = getattr(tokenizer, "chat_template", None) or ""
        texts = list(template.values()) if isinstance(template, dict) else [template]
        has_template = has_chat_template(tokenizer)
        self._abilities = find_abilities(self._try) if has_template else Abilities()
        self.format = ChatFormat(self._abilities.syntax or TOLD, find_reasoning(texts))

    def render(
        self, prompt: ChatPrompt, *, hide: Hide = lambda text: text
    ) -> tuple[str, OutputFormat]:
        """Return the text of a conversation, and how the answer to it is written.

        Args:
            hide: applied to all that the caller wrote.

        Raises:
            InvalidRequest: there is no template, or it cannot write what it was given.
        """
        if not has_chat_template(self._hf):
            raise InvalidRequest(param="messages", reason="this model has no chat template")
        tools = prompt.tools if may_call_tools(prompt) else ()
        variables = self._read_variables(prompt.template_kwargs, hide)
        try:
            text = self._render(prompt, tools, variables, hide)
        except TemplateRefusal as refusal:
            param = "messages"
            if variables and self._can_render(prompt, tools, {}, hide):
                param = "chat_template_kwargs"
            elif tools and self._can_render(prompt, (), variables, hide):
                param = "tools"
            raise InvalidRequest(param=param, reason=str(refusal)) from refusal
        return text, self.format.of_answer(prompt, text=text)

    def _can_render(
        self, prompt: ChatPrompt, tools: Sequence[Tool], variables: Turn, hide: Hide
    ) -> bool:
        try:
            self._render(prompt, tools, variables, hide)
        except TemplateRefusal:
            return False
        return True

    def _render(
        self, prompt: ChatPrompt, tools: Sequence[Tool], variables: Turn, hide: Hide
    ) -> str:
        abilities = self._abilities
        messages = [hide_message(message, hide) for message in with_tool_names(prompt.messages)]
        functions = [describe_function(tool, hide) for tool in tools]
        if abilities.syntax is None:
            turns = plain_turns(messages, self.format.tools)
        else:
            if not abilities.syntax.allows_several:
                messages = with_single_calls(messages)
            turns = [self._turn(message) for message in messages]
        if functions and not abilities.writes_tools:
            text = describe_tools(functions, self.format.tools)
            turns = with_instructions(turns, text, has_system=abilities.writes_system)
            functions = []
        return self._apply(
            turns,
            tools=[{"type": "function", "function": function} for function in functions],
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final_message=prompt.continue_final_message,
            variables=variables,
        )

    def _turn(self, message: ChatMessage) -> Turn:
        turn: Turn = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = self._call_id(message.tool_call_id)
        if message.name is not None:
            turn["name"] = message.name
        return turn

    def _call(self, call: ToolCall) -> Turn:
        arguments = call.arguments if self._abilities.takes_text else json.loads(call.arguments)
        return {
            "id": self._call_id(call.call_id),
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }

    def _call_id(self, call_id: str) -> str:
        if self._abilities.takes_any_id or _SHORT_ID.fullmatch(call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:9]

    def _apply(
        self,
        turns: list[Turn],
        *,
        tools: list[Turn],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Turn | None = None,
    ) -> str:
        template = None
        if isinstance(self._hf.chat_template, dict) and _TOOL_TEMPLATE in self._hf.chat_template:
            has_calls = any("tool_calls" in turn or turn["role"] == "tool" for turn in turns)
            template = _TOOL_TEMPLATE if tools or has_calls else None
        try:
            text: str = self._hf.apply_chat_template(
                turns,
                tools=tools or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(variables or {}),
            )
        except TemplateError as error:
            # What a template raises by itself is written for the caller: "roles must alternate".
            message = error.message or type(error).__name__
            raise TemplateRefusal(f"the model's chat template refuses them: {message}") from error
        except (
            *(TypeError, ValueError, LookupError, AttributeError),
            *(ArithmeticError, RecursionError),
        ) as error:
            raise TemplateRefusal("the model's chat template cannot write them") from error
        return text

    def _try(self, turns: list[Turn], tools: list[Turn]) -> str:
        try:
            return self._apply(turns, tools=tools)
        except TemplateRefusal:
            return ""

    def _read_variables(self, template_kwargs: str, hide: Hide) -> Turn:
        if not template_kwargs:
            return {}
        param = "chat_template_kwargs"
        try:
            variables: Turn = load_hidden(template_kwargs, hide)
        except ValueError as error:
            raise InvalidRequest(param=param, reason=f"cannot be read as JSON: {error}") from error
        if not isinstance(variables, dict):
            raise InvalidRequest(param=param, reason="must be an object")
        if reserved := sorted(self._reserved & variables.keys()):
            raise InvalidRequest(param=param, reason=f"{reserved[0]!r} is not theirs to set")
        return variables


def _reserved_names(tokenizer: Any) -> frozenset[str]:
    """Return what is not a template's variable, or not the caller's."""
    names = {"self", "messages", *getattr(tokenizer, "special_tokens_map", {})}
    if apply := getattr(tokenizer, "apply_chat_template", None):
        names |= set(inspect.signature(apply).parameters)
    return frozenset(names)
