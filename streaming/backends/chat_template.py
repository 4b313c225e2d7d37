"""Conversations as a model's own chat template writes them, tools and their calls included.

What a template can write is found out by letting it write a conversation with a call: only what
comes out counts. A template that writes no calls, or in a way that is not known here, is given
none: tools are described in the system turn, calls and results are written into the turns' text,
in the syntax that `ChatFormat` has for such models.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from streaming.backends.tool_description import describe_tools, write_calls, write_result
from streaming.chat import ChatMessage, Tool, ToolCall
from streaming.chat_format import (
    HERMES,
    REASONING_SYNTAXES,
    TOOL_SYNTAXES,
    ChatFormat,
    may_call_tools,
)
from streaming.errors import InvalidRequest
from streaming.output_parser import OutputFormat, ToolSyntax
from streaming.request import ChatPrompt

Hide = Callable[[str], str]
"""Replaces what the caller wrote like a special token by a mark of letters and digits."""
Turn = dict[str, Any]

_TOOL_TEMPLATE = "tool_use"
"""The name of the template for tools, where a tokenizer has several."""
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
"""Ids of calls as Mistral's templates want them."""
_CALL_ID = re.compile(r"\[CALL_ID\]\w+")
"""Version 11 of Mistral's tokenizers; nothing is lost where a call goes without."""


class TemplateRefusal(Exception):
    """The template did not write a conversation; the text says why."""


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a transformers tokenizer can write a conversation without being told how."""
    template = getattr(tokenizer, "chat_template", None)
    return "default" in template if isinstance(template, dict) else bool(template)


@dataclass(frozen=True, slots=True)
class _Abilities:
    """What a template can write.

    Attributes:
        syntax: of the calls that it writes; None where it writes none, or their results, or in a
            syntax that is not known.
        takes_text: it wants a call's arguments as text, not as an object.
        takes_any_id: as the id of a call; otherwise, only 9 letters and digits.
        writes_tools: what the tools are.
        writes_system: turns of the role system.
    """

    syntax: ToolSyntax | None = None
    takes_text: bool = False
    takes_any_id: bool = True
    writes_tools: bool = False
    writes_system: bool = False


class ChatTemplate:
    """One tokenizer's template. Thread-safe.

    Args:
        tokenizer: a transformers tokenizer, with a template or without.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._hf = tokenizer
        self._reserved = _reserved_names(tokenizer)
        self._abilities = self._find_abilities() if has_chat_template(tokenizer) else _Abilities()
        self.format = ChatFormat(self._abilities.syntax or HERMES, _find_reasoning(tokenizer))

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
        messages = [_hide_message(message, hide) for message in _with_tool_names(prompt.messages)]
        described = [_tool_turn(tool, hide) for tool in tools]
        if abilities.syntax is None:
            turns = _plain_turns(messages)
        else:
            if not abilities.syntax.allows_several:
                messages = _with_single_calls(messages)
            turns = [self._turn(message) for message in messages]
        if described and not abilities.writes_tools:
            text = describe_tools([tool["function"] for tool in described], self.format.tools)
            turns = _with_instructions(turns, text, has_system=abilities.writes_system)
            described = []
        return self._apply(
            turns,
            tools=described or None,
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
        tools: list[Turn] | None = None,
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
                tools=tools,
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

    def _read_variables(self, template_kwargs: str, hide: Hide) -> Turn:
        if not template_kwargs:
            return {}
        param = "chat_template_kwargs"
        try:
            variables = json.loads(template_kwargs)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(param=param, reason="is no JSON") from error
        if not isinstance(variables, dict):
            raise InvalidRequest(param=param, reason="must be an object")
        if reserved := sorted(self._reserved & variables.keys()):
            raise InvalidRequest(param=param, reason=f"{reserved[0]!r} is not theirs to set")
        return {name: _hide_value(value, hide) for name, value in variables.items()}

    # What the template can write.

    def _find_abilities(self) -> _Abilities:
        writes_system = "PROBE_S" in self._probe([_SYSTEM, _USER])
        for takes_text in (False, True):
            arguments: Any = '{"PROBE_K": "PROBE_V"}'
            if not takes_text:
                arguments = json.loads(arguments)
            text = self._probe(_call_turns(arguments, call_id="PROBEid12"), tools=[_TOOL])
            if "PROBE_R" not in text or (syntax := _find_syntax(text)) is None:
                continue
            return _Abilities(
                syntax=syntax,
                takes_text=takes_text,
                takes_any_id=all(
                    self._probe(_call_turns(arguments, call_id=call_id), tools=[_TOOL])
                    for call_id in ("c1", "call_0123456789")
                ),
                # Some write the tools into the last turn, if that is the user's.
                writes_tools="PROBE_T" in text + self._probe([_USER], tools=[_TOOL]),
                writes_system=writes_system,
            )
        return _Abilities(writes_system=writes_system)

    def _probe(self, turns: list[Turn], *, tools: list[Turn] | None = None) -> str:
        """Return what the template makes of a conversation; nothing where it refuses it."""
        try:
            return self._apply(turns, tools=tools)
        except TemplateRefusal:
            return ""


_SYSTEM: Turn = {"role": "system", "content": "PROBE_S"}
_USER: Turn = {"role": "user", "content": "PROBE_U"}
_TOOL: Turn = {
    "type": "function",
    "function": {
        "name": "PROBE_F",
        "description": "PROBE_T",
        "parameters": {
            "type": "object",
            "properties": {"PROBE_K": {"type": "string", "description": "PROBE_K"}},
            "required": ["PROBE_K"],
        },
    },
}


def _call_turns(arguments: Any, *, call_id: str) -> list[Turn]:
    function = {"name": "PROBE_F", "arguments": arguments}
    calls = [{"id": call_id, "type": "function", "function": function}]
    result = {"role": "tool", "tool_call_id": call_id, "name": "PROBE_F", "content": "PROBE_R"}
    return [_USER, {"role": "assistant", "content": "", "tool_calls": calls}, result]


def _find_syntax(text: str) -> ToolSyntax | None:
    """Return the syntax that the probe's call has been written in."""
    text = _CALL_ID.sub("", text)
    for syntax in TOOL_SYNTAXES:
        begin = f"{syntax.section_begin}{syntax.call_begin}PROBE_F{syntax.call_middle}"
        _, found, rest = text.partition(begin)
        if found and re.match(r'\{\s*"PROBE_K"\s*:\s*"PROBE_V"\s*\}', rest):
            return syntax
    return None


def _find_reasoning(tokenizer: Any) -> Any:
    """Return the syntax of reasoning whose end a template knows, to cut it off or to write it."""
    template = getattr(tokenizer, "chat_template", None) or ""
    text = "\n".join(template.values()) if isinstance(template, dict) else template
    return next((syntax for syntax in REASONING_SYNTAXES if syntax.end in text), None)


def _reserved_names(tokenizer: Any) -> frozenset[str]:
    """Return what is not a template's variable, or not the caller's."""
    names = {"self", "messages", *getattr(tokenizer, "special_tokens_map", {})}
    if apply := getattr(tokenizer, "apply_chat_template", None):
        names |= set(inspect.signature(apply).parameters)
    return frozenset(names)


# Turns.


def _hide_message(message: ChatMessage, hide: Hide) -> ChatMessage:
    return ChatMessage(
        role=hide(message.role),
        content=hide(message.content),
        tool_calls=tuple(
            ToolCall(hide(call.call_id), hide(call.name), _hide_json(call.arguments, hide))
            for call in message.tool_calls
        ),
        tool_call_id=None if message.tool_call_id is None else hide(message.tool_call_id),
        name=None if message.name is None else hide(message.name),
        reasoning=None if message.reasoning is None else hide(message.reasoning),
    )


def _hide_json(text: str, hide: Hide) -> str:
    """Return a call's arguments, which may have escaped what they hide: as JSON allows."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            param="messages", reason="the arguments of a tool call are no JSON"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest(
            param="messages", reason="the arguments of a tool call must be an object"
        )
    return json.dumps(_hide_value(value, hide), ensure_ascii=False)


def _hide_value(value: Any, hide: Hide) -> Any:
    match value:
        case str():
            return hide(value)
        case list():
            return [_hide_value(item, hide) for item in value]
        case dict():
            return {hide(name): _hide_value(item, hide) for name, item in value.items()}
        case _:
            return value


def _tool_turn(tool: Tool, hide: Hide) -> Turn:
    try:
        parameters = json.loads(tool.parameters) if tool.parameters else _NO_PARAMETERS
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            param="tools", reason=f"the parameters of {tool.name!r} are no JSON"
        ) from error
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": _hide_value(function, hide)}


_NO_PARAMETERS: Turn = {"type": "object", "properties": {}}


def _with_tool_names(messages: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Return the turns with the name of the tool in each result, where its call is known."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        names |= {call.call_id: call.name for call in message.tool_calls}
        if message.name is None and message.tool_call_id in names:
            message = replace(message, name=names[message.tool_call_id])
        named.append(message)
    return named


def _with_single_calls(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Return the turns with one call in each, followed by its result."""
    single: list[ChatMessage] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if len(message.tool_calls) < 2:
            single.append(message)
            continue
        results = []
        while rest and rest[0].role == "tool":
            results.append(rest.pop(0))
        for index, call in enumerate(message.tool_calls):
            content = "" if index else message.content
            single.append(replace(message, content=content, tool_calls=(call,)))
            own = [result for result in results if result.tool_call_id == call.call_id]
            single += own
            results = [result for result in results if result not in own]
        single += results
    return single


def _plain_turns(messages: list[ChatMessage]) -> list[Turn]:
    """Return the turns with calls as text, and results as what the user says."""
    turns: list[Turn] = []
    was_result = False
    for message in messages:
        role, content = message.role, message.content
        is_result = role == "tool"
        if is_result:
            role, content = "user", write_result(content, name=message.name)
        elif message.tool_calls:
            calls = write_calls(message.tool_calls, HERMES)
            content = f"{content}\n{calls}" if content else calls
        if role == "user" and turns and turns[-1]["role"] == "user" and (is_result or was_result):
            # Many templates want the user and the assistant to take turns.
            turns[-1]["content"] += f"\n{content}"
        else:
            turn: Turn = {"role": role, "content": content}
            if message.reasoning is not None:
                turn["reasoning_content"] = message.reasoning
            turns.append(turn)
        was_result = is_result
    return turns


def _with_instructions(turns: list[Turn], text: str, *, has_system: bool) -> list[Turn]:
    first, *rest = turns
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    if has_system or first["role"] != "user":
        return [{"role": "system", "content": text}, *turns]
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *rest]
