"""Items as the turns that a chat template writes."""

from __future__ import annotations

from collections.abc import Iterable

from app.responses.context import Context
from app.responses.schemas.items import Item, output_text
from app.responses.schemas.summary import decode_summary
from streaming import ChatMessage, ToolCall
from streaming.errors import InvalidRequest

_SUMMARY = "What the conversation was about so far:"


def to_context(output: Iterable[Item]) -> tuple[Item, ...]:
    """Return what a later response sees of this output: no calls that were cut, no logprobs."""
    context: list[Item] = []
    for item in output:
        if item["type"] == "function_call" and item["status"] != "completed":
            continue
        if item["type"] == "message":
            parts = [output_text(part["text"]) for part in item["content"]]
            context.append({**item, "content": parts})
        else:
            context.append(item)
    return tuple(context)


def to_messages(context: Context, *, instructions: str | None = None) -> tuple[ChatMessage, ...]:
    """Return the conversation, the instructions first.

    Raises:
        InvalidRequest: an output belongs to no call before it.
    """
    turns = _Turns()
    if instructions:
        turns.add_system(instructions)
    for index, item in enumerate(context.items):
        match item["type"]:
            case "message" if item["role"] in ("system", "developer"):
                turns.add_system(_text(item["content"]))
            case "message" if item["role"] == "user":
                turns.add(ChatMessage("user", _text(item["content"])))
            case "message":
                turns.add_answer(_text(item["content"]))
            case "reasoning":
                turns.add_reasoning(_text(item["content"] or item["summary"]))
            case "function_call":
                turns.add_call(ToolCall(item["call_id"], item["name"], item["arguments"]))
            case "compaction":
                turns.compact(decode_summary(item["encrypted_content"]))
            case "function_call_output":
                if not turns.add_output(item["call_id"], _text(item["output"])):
                    raise InvalidRequest(
                        param=f"input[{index - context.num_inherited}].call_id",
                        reason=f"there is no call {item['call_id']!r} before it",
                    )
    return turns.close()


def _text(content: str | list[Item]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["refusal"] if "refusal" in part else part["text"] for part in content)


class _Turns:
    """Gathers what the assistant thinks, says and calls in a row into one turn."""

    def __init__(self) -> None:
        self._messages: list[ChatMessage] = []
        self._names: dict[str, str] = {}
        self._reset()

    def _reset(self) -> None:
        self._reasoning: str | None = None
        self._answer: str | None = None
        self._calls: list[ToolCall] = []

    def add(self, message: ChatMessage) -> None:
        self.close()
        self._messages.append(message)

    def add_system(self, text: str) -> None:
        """Add a turn of the system; those at the very beginning make one, as templates want."""
        self.close()
        if len(self._messages) == 1 and self._messages[0].role == "system":
            text = f"{self._messages.pop().content}\n\n{text}"
        self._messages.append(ChatMessage("system", text))

    def compact(self, summary: str) -> None:
        """Let a summary stand for all turns so far but the system's."""
        self.close()
        self._messages = [message for message in self._messages if message.role == "system"]
        self._names.clear()
        self.add_system(f"{_SUMMARY}\n{summary}")

    def add_reasoning(self, text: str) -> None:
        if self._answer is not None or self._calls:
            self.close()
        self._reasoning = text if self._reasoning is None else f"{self._reasoning}\n{text}"

    def add_answer(self, text: str) -> None:
        if self._answer is not None or self._calls:
            self.close()
        self._answer = text

    def add_call(self, call: ToolCall) -> None:
        self._calls.append(call)
        self._names[call.call_id] = call.name

    def add_output(self, call_id: str, text: str) -> bool:
        """Add what a call returned; return False if there was no such call."""
        name = self._names.get(call_id)
        if name is None:
            return False
        self.add(ChatMessage("tool", text, tool_call_id=call_id, name=name))
        return True

    def close(self) -> tuple[ChatMessage, ...]:
        """End the assistant's turn, if there is one, and return all turns."""
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
