"""The items of a response's prompt: those of earlier responses, then its own input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

from app.responses.schemas.objects import Item
from streaming.errors import InvalidRequest

MAX_CONTEXT_BYTES = 8 * 2**20
"""Size limit as JSON. With `truncation: auto` a conversation can outgrow the model's context."""


@dataclass(frozen=True, slots=True)
class Context:
    """The items that a prompt was made of.

    Attributes:
        items: all of them, in order.
        num_inherited: number of leading items that come from earlier responses.
        num_bytes: size of all items as JSON.
    """

    items: tuple[Item, ...]
    num_inherited: int
    num_bytes: int

    @classmethod
    def of(cls, inherited: tuple[Item, ...], own: tuple[Item, ...]) -> Self:
        """Join items; takes time proportional to their size.

        Raises:
            InvalidRequest: together they are larger than `MAX_CONTEXT_BYTES`.
        """
        items = (*inherited, *own)
        num_bytes = len("[]") + len(", ") * max(0, len(items) - 1)
        for item in items:
            num_bytes += len(json.dumps(item))
            # Check after each item: references may repeat one item thousands of times.
            if num_bytes > MAX_CONTEXT_BYTES:
                raise InvalidRequest(
                    param="previous_response_id" if inherited else "input",
                    reason=f"the conversation is larger than {MAX_CONTEXT_BYTES} bytes as JSON",
                )
        return cls(items, len(inherited), num_bytes)

    @property
    def own(self) -> tuple[Item, ...]:
        """The items of the response's own input."""
        return self.items[self.num_inherited :]
