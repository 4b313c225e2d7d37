"""What a response was asked with: the items of earlier responses, and its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

from app.schemas.response_items import Item
from streaming.errors import InvalidRequest

MAX_CONTEXT_BYTES = 8 * 2**20
"""Written as JSON. Where turns may be left out of the prompt, a conversation can outgrow it."""


@dataclass(frozen=True, slots=True)
class Context:
    """The items that a prompt was made of.

    Attributes:
        num_inherited: so many, the first ones, are of earlier responses.
        num_bytes: size of all, written as JSON.
    """

    items: tuple[Item, ...]
    num_inherited: int
    num_bytes: int

    @classmethod
    def of(cls, inherited: tuple[Item, ...], own: tuple[Item, ...]) -> Self:
        """Join items, which takes time by their size.

        Raises:
            InvalidRequest: they are too large together.
        """
        items = (*inherited, *own)
        num_bytes = len(json.dumps(items))
        if num_bytes > MAX_CONTEXT_BYTES:
            raise InvalidRequest(
                param="previous_response_id" if inherited else "input",
                reason=f"the conversation has {num_bytes} bytes; at most {MAX_CONTEXT_BYTES} are "
                "taken",
            )
        return cls(items, len(inherited), num_bytes)

    @property
    def own(self) -> tuple[Item, ...]:
        return self.items[self.num_inherited :]
