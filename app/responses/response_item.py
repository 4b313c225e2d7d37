"""One item of the output while it is being written."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, assert_never

from app.schemas.response_items import Item, output_text


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
        pieces: its text or its arguments, as they came.
        logprobs: of a message, in their wire form.
    """

    kind: ItemKind
    key: str
    name: str = ""
    status: ItemStatus = ItemStatus.IN_PROGRESS
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def item_id(self) -> str:
        return f"{_ID_PREFIXES[self.kind]}_{self.key}"

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def part(self) -> Item:
        """The one content part of a message or of reasoning."""
        if self.kind is ItemKind.REASONING:
            return {"type": "reasoning_text", "text": self.text}
        return output_text(self.text, list(self.logprobs))

    def shown(self, *, is_new: bool = False) -> Item:
        """Return the item as it stands; a new one has no content yet."""
        more: Item
        match self.kind:
            case ItemKind.REASONING:
                more = {"summary": [], "content": [] if is_new else [self.part]}
            case ItemKind.MESSAGE:
                more = {"role": "assistant", "content": [] if is_new else [self.part]}
            case ItemKind.FUNCTION_CALL:
                more = {"call_id": f"call_{self.key}", "name": self.name, "arguments": self.text}
            case _:
                assert_never(self.kind)
        return {"id": self.item_id, "type": str(self.kind), "status": str(self.status), **more}
