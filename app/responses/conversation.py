"""Converts the items of a conversation into the messages of a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.responses.context import Context
from app.responses.schemas.items import decode_summary, to_output_text
from app.responses.schemas.objects import (
    ContentObject,
    Item,
    OutputItemObject,
    ReasoningTextObject,
    SummaryTextObject,
)
from streaming import ChatMessage, ToolCall
from streaming.errors import InvalidRequest

_SUMMARY = "What the conversation was about so far:"


def to_context(output: Iterable[OutputItemObject]) -> tuple[Item, ...]:
    """Return a response's output as context of the next, without logprobs and cut-off calls."""
    context: list[Item] = []
    for item in output:
        if item["type"] == "function_call" and item["status"] != "completed":
            continue
        if item["type"] == "message":
            parts: list[ContentObject] = [
                to_output_text(_part_text(part)) for part in item["content"]
            ]
            context.append({**item, "content": parts})
        else:
            context.append(item)
    return tuple(context)


def to_messages(context: Context, *, instructions: str | None = None) -> tuple[ChatMessage, ...]:
    """Return the messages of a conversation.

    Args:
        context: its items.
        instructions: the first system message.

    Raises:
        InvalidRequest: a function call output has no call before it.
    """
    messages = _Messages()
    if instructions:
        messages.add_system(instructions)
    for index, item in enumerate(context.items):
        if item["type"] == "message":
            text = _text(item["content"])
            if item["role"] == "assistant":
                messages.add_answer(text)
            elif item["role"] == "user":
                messages.add(ChatMessage("user", text))
            else:
                messages.add_system(text)
        elif item["type"] == "reasoning":
            messages.add_reasoning(_text(item["content"] or item["summary"]))
        elif item["type"] == "function_call":
            messages.add_call(ToolCall(item["call_id"], item["name"], item["arguments"]))
        elif item["type"] == "compaction":
            messages.compact(decode_summary(item["encrypted_content"]))
        elif item["type"] == "function_call_output":
            if not messages.add_output(item["call_id"], _text(item["output"])):
                raise InvalidRequest(
                    param=f"input[{index - context.num_inherited}].call_id",
                    reason=f"no call {item['call_id']!r} comes before it",
                )
        else:
            raise AssertionError(f"{item['type']} should have been resolved")
    return messages.close()


_AnyText = ContentObject | ReasoningTextObject | SummaryTextObject


def _text(content: str | Sequence[_AnyText]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(map(_part_text, content))


def _part_text(part: _AnyText) -> str:
    return part["refusal"] if part["type"] == "refusal" else part["text"]


class _Messages:
    """Merges consecutive reasoning, text and calls of the assistant into one message."""

    def __init__(self) -> None:
        self._messages: list[ChatMessage] = []
        self._function_names: dict[str, str] = {}
        self._reset()

    def _reset(self) -> None:
        self._reasoning: str | None = None
        self._answer: str | None = None
        self._calls: list[ToolCall] = []

    def add(self, message: ChatMessage) -> None:
        """Append a message that stands by itself."""
        self.close()
        self._messages.append(message)

    def add_system(self, text: str) -> None:
        """Append a system message; leading ones are merged, as chat templates expect only one."""
        self.close()
        if len(self._messages) == 1 and self._messages[0].role == "system":
            text = f"{self._messages.pop().content}\n\n{text}"
        self._messages.append(ChatMessage("system", text))

    def compact(self, summary: str) -> None:
        """Replace all messages so far, except the system's, by a summary."""
        self.close()
        self._messages = [message for message in self._messages if message.role == "system"]
        self._function_names.clear()
        self.add_system(f"{_SUMMARY}\n{summary}")

    def add_reasoning(self, text: str) -> None:
        """Add reasoning of the assistant, which comes before its answer."""
        if self._answer is not None or self._calls:
            self.close()
        self._reasoning = text if self._reasoning is None else f"{self._reasoning}\n{text}"

    def add_answer(self, text: str) -> None:
        """Add an answer of the assistant, which comes before its calls."""
        if self._answer is not None or self._calls:
            self.close()
        self._answer = text

    def add_call(self, call: ToolCall) -> None:
        """Add a call of the assistant."""
        self._calls.append(call)
        self._function_names[call.call_id] = call.name

    def add_output(self, call_id: str, text: str) -> bool:
        """Append the output of a call; return False if the call is unknown."""
        name = self._function_names.get(call_id)
        if name is None:
            return False
        self.add(ChatMessage("tool", text, tool_call_id=call_id, name=name))
        return True

    def close(self) -> tuple[ChatMessage, ...]:
        """End the assistant's message, if one is open, and return all messages."""
        if self._reasoning is not None or self._answer is not None or self._calls:
            self._messages.append(
                ChatMessage(
                    "assistant",
                    self._answer or "",
                    tool_calls=tuple(self._calls),
                    reasoning=self._reasoning,
                )
            )
            self._reset()
        return tuple(self._messages)
