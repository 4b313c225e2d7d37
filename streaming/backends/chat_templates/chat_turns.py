"""Converts a conversation to the turns that a chat template takes.

For a model whose template does not render tools, it also writes tools, calls and results as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from streaming.chat.messages import ChatMessage, Tool, ToolCall
from streaming.chat.output_parser import ToolSyntax
from streaming.errors import InvalidRequest

Escape = Callable[[str], str]
"""Replaces special tokens in a caller's text by placeholders of letters and digits."""
Turn = dict[str, Any]

_NO_PARAMETERS: Turn = {"type": "object", "properties": {}}


def escape_message(message: ChatMessage, escape: Escape) -> ChatMessage:
    """Return a turn with all its texts escaped.

    Raises:
        InvalidRequest: a call's arguments are not a JSON object.
    """
    return ChatMessage(
        role=escape(message.role),
        content=escape(message.content),
        tool_calls=tuple(
            ToolCall(
                escape(call.call_id), escape(call.name), _escape_arguments(call.arguments, escape)
            )
            for call in message.tool_calls
        ),
        tool_call_id=None if message.tool_call_id is None else escape(message.tool_call_id),
        name=None if message.name is None else escape(message.name),
        reasoning=None if message.reasoning is None else escape(message.reasoning),
    )


def _escape_arguments(text: str, escape: Escape) -> str:
    try:
        value = load_escaped(text or "{}", escape)
    except ValueError as error:
        raise InvalidRequest(
            param="messages",
            reason=f"the arguments of a tool call are not valid JSON: {error}",
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest(
            param="messages", reason="the arguments of a tool call must be a JSON object"
        )
    return json.dumps(value, ensure_ascii=False)


def load_escaped(text: str, escape: Escape) -> Any:
    """Parse JSON and return the value with all its strings escaped.

    This covers special tokens that the JSON writes with Unicode escapes, too.

    Raises:
        ValueError: the text is not JSON or is nested too deeply.
    """
    try:
        return _escape_value(json.loads(text), escape)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _escape_value(value: Any, escape: Escape) -> Any:
    match value:
        case str():
            return escape(value)
        case list():
            return [_escape_value(item, escape) for item in value]
        case dict():
            return {escape(name): _escape_value(item, escape) for name, item in value.items()}
        case _:
            return value


def describe_function(tool: Tool, escape: Escape) -> Turn:
    """Return a tool as the function object that templates take, with all its texts escaped.

    Raises:
        InvalidRequest: its parameters are not JSON.
    """
    try:
        parameters = load_escaped(tool.parameters, escape) if tool.parameters else _NO_PARAMETERS
    except ValueError as error:
        raise InvalidRequest(
            param="tools", reason=f"the parameters of {tool.name!r} are not valid JSON: {error}"
        ) from error
    return {
        "name": escape(tool.name),
        "description": escape(tool.description),
        "parameters": parameters,
    }


def with_tool_names(messages: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Return the turns with the tool's name in each result whose call is in the conversation."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        names |= {call.call_id: call.name for call in message.tool_calls}
        if message.name is None and message.tool_call_id in names:
            message = replace(message, name=names[message.tool_call_id])
        named.append(message)
    return named


def with_single_calls(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Return the turns with each call in a turn of its own, followed by its result."""
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
    """Return the turns with calls as text and results in user turns."""
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
            # Many templates require user and assistant turns to alternate.
            turns[-1]["content"] += f"\n{content}"
        else:
            turn: Turn = {"role": role, "content": content}
            if message.reasoning is not None:
                turn["reasoning_content"] = message.reasoning
            turns.append(turn)
        was_result = is_result
    return turns


def with_instructions(turns: list[Turn], text: str, *, has_system: bool) -> list[Turn]:
    """Return the turns with instructions added to the first one.

    Args:
        turns: the conversation, at least one turn.
        text: the instructions.
        has_system: whether the template renders system turns. If not, the instructions go into the
            user's first turn.
    """
    first, *rest = turns
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    if has_system or first["role"] != "user":
        return [{"role": "system", "content": text}, *turns]
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *rest]


def describe_tools(functions: Iterable[Turn], syntax: ToolSyntax) -> str:
    """Return instructions that teach a model to call tools, for its system turn.

    Args:
        functions: name, description and parameters of each tool.
        syntax: how the model must write its calls.
    """
    lines = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    example = write_calls([ToolCall("", "NAME", '{"ARGUMENT": VALUE}')], syntax)
    return (
        "You are a function calling assistant. The functions are inside <tools></tools>, one on "
        f"each line:\n<tools>\n{lines}\n</tools>\n\n"
        f"Where a function can help, call it in this form and add nothing:\n{example}\n"
        "You are then given its result. Where no function can help, answer in words."
    )


def write_calls(calls: Iterable[ToolCall], syntax: ToolSyntax) -> str:
    """Return calls as text, in the syntax in which the model writes them."""
    written = (
        f"{syntax.call_begin}{call.name}{syntax.call_middle}{call.arguments}{syntax.call_end}"
        for call in calls
    )
    return f"{syntax.section_begin}{syntax.separator.join(written)}{syntax.section_end}"


def write_result(content: str, *, name: str | None) -> str:
    """Return a tool's result as text for a user turn.

    It is a sentence without tags: small models answer tags with tags.
    """
    return f"Result of {name or 'the function'}:\n{content}"
