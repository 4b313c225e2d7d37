"""Renders conversations with a model's own chat template, including tools and their calls.

A template that does not render calls, or renders them in an unknown syntax, gets none. Tools are
then described in the system turn, and calls and results become text of the turns, in the default
syntax of `ChatFormat`.
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
    Escape,
    Turn,
    describe_function,
    describe_tools,
    escape_message,
    load_escaped,
    plain_turns,
    with_instructions,
    with_single_calls,
    with_tool_names,
)
from streaming.backends.chat_templates.template_capabilities import (
    TemplateCapabilities,
    detect_capabilities,
    detect_reasoning,
)
from streaming.chat.format import DEFAULT_TOOL_SYNTAX, ChatFormat, may_call_tools
from streaming.chat.messages import ChatMessage, Tool, ToolCall
from streaming.chat.output_parser import OutputFormat
from streaming.errors import InvalidRequest
from streaming.request import ChatPrompt

_TOOL_TEMPLATE = "tool_use"
"""Name of the template for tools, in tokenizers with several templates."""
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
"""The only call ids that Mistral's templates accept."""


class ChatTemplateError(Exception):
    """The template did not render a conversation; the text is the reason."""


def has_chat_template(tokenizer: Any) -> bool:
    """Return whether a transformers tokenizer has a default chat template."""
    template = getattr(tokenizer, "chat_template", None)
    return "default" in template if isinstance(template, dict) else bool(template)


class ChatTemplate:
    """The chat template of one tokenizer. Thread-safe.

    Args:
        tokenizer: a transformers tokenizer, with or without a template.

    Attributes:
        format: how the model writes tool calls and reasoning.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._hf = tokenizer
        self._reserved = _reserved_names(tokenizer)
        template = getattr(tokenizer, "chat_template", None) or ""
        texts = list(template.values()) if isinstance(template, dict) else [template]
        has_template = has_chat_template(tokenizer)
        self._capabilities = (
            detect_capabilities(self._render_probe) if has_template else TemplateCapabilities()
        )
        self.format = ChatFormat(
            self._capabilities.syntax or DEFAULT_TOOL_SYNTAX, detect_reasoning(texts)
        )

    def render(
        self, prompt: ChatPrompt, *, escape: Escape = lambda text: text
    ) -> tuple[str, OutputFormat]:
        """Return the text of a conversation, and the format of the answer to it.

        Args:
            prompt: the conversation, its tools and the template's variables.
            escape: applied to all texts of the caller.

        Raises:
            InvalidRequest: there is no template, or it does not render the prompt.
        """
        if not has_chat_template(self._hf):
            raise InvalidRequest(param="messages", reason="this model has no chat template")
        tools = prompt.tools if may_call_tools(prompt) else ()
        variables = self._read_variables(prompt.template_kwargs, escape)
        try:
            text = self._render(prompt, tools, variables, escape)
        except ChatTemplateError as error:
            param = "messages"
            if variables and self._can_render(prompt, tools, {}, escape):
                param = "chat_template_kwargs"
            elif tools and self._can_render(prompt, (), variables, escape):
                param = "tools"
            raise InvalidRequest(param=param, reason=str(error)) from error
        return text, self.format.of_answer(prompt, text=text)

    def _can_render(
        self, prompt: ChatPrompt, tools: Sequence[Tool], variables: Turn, escape: Escape
    ) -> bool:
        try:
            self._render(prompt, tools, variables, escape)
        except ChatTemplateError:
            return False
        return True

    def _render(
        self, prompt: ChatPrompt, tools: Sequence[Tool], variables: Turn, escape: Escape
    ) -> str:
        capabilities = self._capabilities
        messages = [escape_message(message, escape) for message in with_tool_names(prompt.messages)]
        functions = [describe_function(tool, escape) for tool in tools]
        if capabilities.syntax is None:
            turns = plain_turns(messages, self.format.tools)
        else:
            if not capabilities.syntax.allows_several:
                messages = with_single_calls(messages)
            turns = [self._make_turn(message) for message in messages]
        if functions and not capabilities.writes_tools:
            text = describe_tools(functions, self.format.tools)
            turns = with_instructions(turns, text, has_system=capabilities.writes_system)
            functions = []
        return self._apply(
            turns,
            tools=[{"type": "function", "function": function} for function in functions],
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final_message=prompt.continue_final_message,
            variables=variables,
        )

    def _make_turn(self, message: ChatMessage) -> Turn:
        turn: Turn = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = [self._make_call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = self._call_id(message.tool_call_id)
        if message.name is not None:
            turn["name"] = message.name
        return turn

    def _make_call(self, call: ToolCall) -> Turn:
        arguments = call.arguments if self._capabilities.takes_text else json.loads(call.arguments)
        return {
            "id": self._call_id(call.call_id),
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }

    def _call_id(self, call_id: str) -> str:
        if self._capabilities.takes_any_id or _SHORT_ID.fullmatch(call_id):
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
            # A message that the template raises is meant for the caller: "roles must alternate".
            message = error.message or type(error).__name__
            raise ChatTemplateError(f"refused by the model's chat template: {message}") from error
        except (
            *(TypeError, ValueError, LookupError, AttributeError),
            *(ArithmeticError, RecursionError),
        ) as error:
            raise ChatTemplateError("the model's chat template failed to render them") from error
        return text

    def _render_probe(self, turns: list[Turn], tools: list[Turn]) -> str:
        try:
            return self._apply(turns, tools=tools)
        except ChatTemplateError:
            return ""

    def _read_variables(self, template_kwargs: str, escape: Escape) -> Turn:
        if not template_kwargs:
            return {}
        param = "chat_template_kwargs"
        try:
            variables: Turn = load_escaped(template_kwargs, escape)
        except ValueError as error:
            raise InvalidRequest(param=param, reason=f"not valid JSON: {error}") from error
        if not isinstance(variables, dict):
            raise InvalidRequest(param=param, reason="must be a JSON object")
        if reserved := sorted(self._reserved & variables.keys()):
            raise InvalidRequest(param=param, reason=f"{reserved[0]!r} is reserved")
        return variables


def _reserved_names(tokenizer: Any) -> frozenset[str]:
    """Return the names of template variables that a caller must not set."""
    names = {"self", "messages", *getattr(tokenizer, "special_tokens_map", {})}
    if apply := getattr(tokenizer, "apply_chat_template", None):
        names |= set(inspect.signature(apply).parameters)
    return frozenset(names)
