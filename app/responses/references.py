"""Resolves references: items that a client names by their ids instead of sending them again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Set

from app.errors import RequestRefused
from app.responses.response import AnyResponse
from app.responses.schemas.objects import Item
from streaming.errors import InvalidRequest

_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})_i?[0-9]+")
"""An item id made by this server, which contains the key of its response."""

FindResponse = Callable[[str], Awaitable[AnyResponse]]


async def resolve(
    items: tuple[Item, ...], *, parent: AnyResponse | None, find: FindResponse
) -> tuple[Item, ...]:
    """Return the items with each reference replaced by the item that it names.

    Args:
        items: the input of a request.
        parent: the response that the request continues; its items can be named by any id.
        find: returns a response by its id, or raises `RequestRefused`.

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
    find: FindResponse,
    known: dict[str, dict[str, Item]],
    wanted: Set[str],
) -> Item | None:
    """Return an item; adds the wanted items of each response that it reads to `known`."""
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


async def _find_or_none(response_id: str, find: FindResponse) -> AnyResponse | None:
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
