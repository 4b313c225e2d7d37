"""What a response was asked with: the items of earlier responses, and its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

from app.responses.schemas.items import Item
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
        num_bytes = len("[]") + len(", ") * max(0, len(items) - 1)
        for item in items:
            num_bytes += len(json.dumps(item))
            # Looked at after each: one item may be there, by its reference, thousands of times.
            if num_bytes > MAX_CONTEXT_BYTES:
                raise InvalidRequest(
                    param="previous_response_id" if inherited else "input",
                    reason="the conversation is too large: at most "
                    f"{MAX_CONTEXT_BYTES} bytes are taken",
                )
        return cls(items, len(inherited), num_bytes)

    @property
    def own(self) -> tuple[Item, ...]:
        return self.items[self.num_inherited :]
