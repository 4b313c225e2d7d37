"""Items that a client names by their ids instead of sending them once more."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Set

from app.errors import RequestRefused
from app.responses.response import AnyResponse
from app.responses.schemas.items import Item
from streaming.errors import InvalidRequest

_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})_i?[0-9]+")
"""Ids that we have made tell which response they are of."""

Find = Callable[[str], Awaitable[AnyResponse]]


async def resolve(
    items: tuple[Item, ...], *, parent: AnyResponse | None, find: Find
) -> tuple[Item, ...]:
    """Put items in the place of the references to them.

    Args:
        parent: the response that is gone on from, whose items can be named by any id.
        find: returns a response by its id, or refuses.

    Raises:
        InvalidRequest: there is no such item, or its response has not ended.
        RequestRefused: responses cannot be looked up now.
    """
    wanted = {item["id"] for item in items if item["type"] == "item_reference"}
    known: dict[str, dict[str, Item]] = {}
    resolved: list[Item] = []
    for index, item in enumerate(items):
        if item["type"] != "item_reference":
            resolved.append(item)
            continue
        found = await _find_item(item["id"], parent=parent, find=find, known=known, wanted=wanted)
        if found is None:
            raise InvalidRequest(
                param=f"input[{index}].id", reason=f"there is no item {item['id'][:100]!r}"
            )
        resolved.append(found)
    return tuple(resolved)


async def _find_item(
    item_id: str,
    *,
    parent: AnyResponse | None,
    find: Find,
    known: dict[str, dict[str, Item]],
    wanted: Set[str],
) -> Item | None:
    """Return an item, and keep in `known`, by response, those that are wanted, too."""
    made_here = _ITEM_ID.fullmatch(item_id)
    response_ids = [] if parent is None else [parent.response_id]
    if made_here is not None:
        response_ids.append(f"resp_{made_here[1]}")
    for response_id in response_ids:
        if response_id not in known:
            is_parent = parent is not None and response_id == parent.response_id
            response = parent if is_parent else await _find_or_none(response_id, find)
            known[response_id] = await _items_by_id(response, wanted)
        if (found := known[response_id].get(item_id)) is not None:
            return found
    return None


async def _find_or_none(response_id: str, find: Find) -> AnyResponse | None:
    try:
        return await find(response_id)
    except RequestRefused as error:
        if error.info.code != "response_not_found":
            raise
        return None


async def _items_by_id(response: AnyResponse | None, wanted: Set[str]) -> dict[str, Item]:
    if response is None or not response.is_ended:
        return {}
    conversation = await asyncio.to_thread(response.conversation)
    return {item["id"]: item for item in conversation if item["id"] in wanted}
