"""The turns of a conversation, as a chat template takes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from streaming.backends.chat_templates.tool_description import write_calls, write_result
from streaming.chat.messages import ChatMessage, Tool, ToolCall
from streaming.chat.output_parser import ToolSyntax
from streaming.errors import InvalidRequest

Hide = Callable[[str], str]
"""Replaces what the caller wrote like a special token by a mark of letters and digits."""
Turn = dict[str, Any]

_NO_PARAMETERS: Turn = {"type": "object", "properties": {}}


def hide_message(message: ChatMessage, hide: Hide) -> ChatMessage:
    """Return a turn with all that the caller wrote hidden.

    Raises:
        InvalidRequest: a call's arguments are no JSON object.
    """
    return ChatMessage(
        role=hide(message.role),
        content=hide(message.content),
        tool_calls=tuple(
            ToolCall(hide(call.call_id), hide(call.name), _hide_arguments(call.arguments, hide))
            for call in message.tool_calls
        ),
        tool_call_id=None if message.tool_call_id is None else hide(message.tool_call_id),
        name=None if message.name is None else hide(message.name),
        reasoning=None if message.reasoning is None else hide(message.reasoning),
    )


def _hide_arguments(text: str, hide: Hide) -> str:
    try:
        value = load_hidden(text or "{}", hide)
    except ValueError as error:
        raise InvalidRequest(
            param="messages",
            reason=f"the arguments of a tool call cannot be read as JSON: {error}",
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest(
            param="messages", reason="the arguments of a tool call must be an object"
        )
    return json.dumps(value, ensure_ascii=False)


def load_hidden(text: str, hide: Hide) -> Any:
    """Return a JSON value with all its texts hidden, those that it writes with escapes, too.

    Raises:
        ValueError: it is no JSON, or too many values lie in each other.
    """
    try:
        return _hide_value(json.loads(text), hide)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


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


def describe_function(tool: Tool, hide: Hide) -> Turn:
    """Return a tool as templates take it.

    Raises:
        InvalidRequest: its parameters are no JSON.
    """
    try:
        parameters = load_hidden(tool.parameters, hide) if tool.parameters else _NO_PARAMETERS
    except ValueError as error:
        raise InvalidRequest(
            param="tools", reason=f"the parameters of {tool.name!r} cannot be read as JSON: {error}"
        ) from error
    return {
        "name": hide(tool.name),
        "description": hide(tool.description),
        "parameters": parameters,
    }


def with_tool_names(messages: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Return the turns with the name of the tool in each result, where its call is known."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        names |= {call.call_id: call.name for call in message.tool_calls}
        if message.name is None and message.tool_call_id in names:
            message = replace(message, name=names[message.tool_call_id])
        named.append(message)
    return named


def with_single_calls(messages: list[ChatMessage]) -> list[ChatMessage]:
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


def plain_turns(messages: Iterable[ChatMessage], syntax: ToolSyntax) -> list[Turn]:
    """Return the turns with calls as text, and results as what the user says."""
    turns: list[Turn] = []
    was_result = False
    for message in messages:
        role, content = message.role, message.content
        is_result = role == "tool"
        if is_result:
            role, content = "user", write_result(content, name=message.name)
        elif message.tool_calls:
            calls = write_calls(message.tool_calls, syntax)
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


def with_instructions(turns: list[Turn], text: str, *, has_system: bool) -> list[Turn]:
    """Return the turns with instructions for the model.

    Args:
        has_system: the template writes system turns; otherwise, the user's first turn has them.
    """
    first, *rest = turns
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    if has_system or first["role"] != "user":
        return [{"role": "system", "content": text}, *turns]
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *rest]
