"""One item of the output while it is being written."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from io import StringIO
from typing import assert_never

from app.responses.schemas.items import Item, output_text


class ItemKind(StrEnum):
    REASONING = "reasoning"
    MESSAGE = "message"
    FUNCTION_CALL = "function_call"


class ItemStatus(StrEnum):
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"


_ID_PREFIXES = {ItemKind.REASONING: "rs", ItemKind.MESSAGE: "msg", ItemKind.FUNCTION_CALL: "fc"}


@dataclass(slots=True, kw_only=True)
class OutputItem:
    """What has come of an item so far.

    Attributes:
        key: makes its ids, which are the same for every reader.
        name: of a call, the function.
        token_numbers: of a message, the records in the log whose log probabilities it shows.
    """

    kind: ItemKind
    key: str
    name: str = ""
    status: ItemStatus = ItemStatus.IN_PROGRESS
    token_numbers: array[int] = field(default_factory=lambda: array("I"))
    _text: StringIO = field(default_factory=StringIO)

    @property
    def item_id(self) -> str:
        return f"{_ID_PREFIXES[self.kind]}_{self.key}"

    def add(self, text: str) -> None:
        """Take the next piece of its text or of its arguments."""
        self._text.write(text)

    @property
    def text(self) -> str:
        return self._text.getvalue()

    def part(self, logprobs: list[Item]) -> Item:
        """Return the one content part of a message or of reasoning.

        Args:
            logprobs: of a message, those of `token_numbers`.
        """
        if self.kind is ItemKind.REASONING:
            return {"type": "reasoning_text", "text": self.text}
        return output_text(self.text, logprobs)

    def shown(self, logprobs: list[Item], *, is_new: bool = False) -> Item:
        """Return the item as it stands; a new one has no content yet."""
        more: Item
        match self.kind:
            case ItemKind.REASONING:
                more = {"summary": [], "content": [] if is_new else [self.part(logprobs)]}
            case ItemKind.MESSAGE:
                more = {"role": "assistant", "content": [] if is_new else [self.part(logprobs)]}
            case ItemKind.FUNCTION_CALL:
                more = {"call_id": f"call_{self.key}", "name": self.name, "arguments": self.text}
            case _:
                assert_never(self.kind)
        return {"id": self.item_id, "type": str(self.kind), "status": str(self.status), **more}
