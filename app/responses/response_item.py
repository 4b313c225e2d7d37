"""One item of a response's output while it is being written."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from io import StringIO
from typing import assert_never

from app.responses.schemas.items import to_output_text
from app.responses.schemas.objects import (
    ChosenLogprobObject,
    OutputItemObject,
    OutputTextObject,
    ReasoningTextObject,
)


class ItemKind(StrEnum):
    """The `type` of an output item."""

    REASONING = "reasoning"
    MESSAGE = "message"
    FUNCTION_CALL = "function_call"


class ItemStatus(StrEnum):
    """The `status` of an output item."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"


_ID_PREFIXES = {ItemKind.REASONING: "rs", ItemKind.MESSAGE: "msg", ItemKind.FUNCTION_CALL: "fc"}


@dataclass(slots=True, kw_only=True)
class OutputItem:
    """An output item with the text that has been generated so far.

    Attributes:
        kind: its type.
        key: makes its ids, which are the same for every reader.
        name: the function of a call.
        status: in progress until the item ends.
        token_numbers: records of the log whose log probabilities a message shows.
    """

    kind: ItemKind
    key: str
    name: str = ""
    status: ItemStatus = ItemStatus.IN_PROGRESS
    token_numbers: array[int] = field(default_factory=lambda: array("I"))
    _text: StringIO = field(default_factory=StringIO)

    @property
    def item_id(self) -> str:
        """The id of the item."""
        return f"{_ID_PREFIXES[self.kind]}_{self.key}"

    def add(self, text: str) -> None:
        """Append to the text, or to the arguments of a call."""
        self._text.write(text)

    @property
    def text(self) -> str:
        """The text so far, or the arguments of a call."""
        return self._text.getvalue()

    def to_part(
        self, logprobs: list[ChosenLogprobObject]
    ) -> OutputTextObject | ReasoningTextObject:
        """Return the only content part of a message or of reasoning.

        Args:
            logprobs: those of `token_numbers`.
        """
        if self.kind is ItemKind.REASONING:
            return self._reasoning_text()
        return to_output_text(self.text, logprobs)

    def to_object(
        self, logprobs: list[ChosenLogprobObject], *, is_new: bool = False
    ) -> OutputItemObject:
        """Return the item as it stands.

        Args:
            logprobs: those of `token_numbers`.
            is_new: leave the content out, as the event that announces the item does.
        """
        match self.kind:
            case ItemKind.REASONING:
                return {
                    "id": self.item_id,
                    "type": "reasoning",
                    "status": str(self.status),
                    "summary": [],
                    "content": [] if is_new else [self._reasoning_text()],
                }
            case ItemKind.MESSAGE:
                return {
                    "id": self.item_id,
                    "type": "message",
                    "status": str(self.status),
                    "role": "assistant",
                    "content": [] if is_new else [to_output_text(self.text, logprobs)],
                }
            case ItemKind.FUNCTION_CALL:
                return {
                    "id": self.item_id,
                    "type": "function_call",
                    "status": str(self.status),
                    "call_id": f"call_{self.key}",
                    "name": self.name,
                    "arguments": self.text,
                }
            case _:
                assert_never(self.kind)

    def _reasoning_text(self) -> ReasoningTextObject:
        return {"type": "reasoning_text", "text": self.text}
