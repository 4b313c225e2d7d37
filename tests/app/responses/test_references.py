from __future__ import annotations

from typing import Any

import pytest

from app.errors import RequestRefused
from app.responses.context import Context
from app.responses.references import resolve
from app.responses.refusals import not_found, store_unavailable
from app.responses.response import AnyResponse, StoredResponse
from app.responses.schemas.objects import Item
from streaming.errors import InvalidRequest

KEY, OTHER_KEY = "0" * 31 + "a", "0" * 31 + "b"


def message(item_id: str) -> Item:
    return {"id": item_id, "type": "message", "status": "completed", "role": "user", "content": []}


def reference(item_id: str) -> Item:
    return {"id": item_id, "type": "item_reference"}


def make_response(key: str, *item_ids: str) -> StoredResponse:
    return StoredResponse(
        response_id=f"resp_{key}",
        caller="me",
        last_snapshot={"output": []},
        context=Context.of((), tuple(map(message, item_ids))),
        num_bytes=0,
    )


class Responses:
    """Finds responses, and counts how often it is asked."""

    def __init__(self, *responses: StoredResponse) -> None:
        self._by_id = {each.response_id: each for each in responses}
        self.asked: list[str] = []

    async def find(self, response_id: str) -> AnyResponse:
        self.asked.append(response_id)
        if response_id not in self._by_id:
            raise not_found(response_id)
        return self._by_id[response_id]


async def test_an_id_made_here_leads_to_its_response():
    responses = Responses(make_response(KEY, f"msg_{KEY}_i0", f"msg_{KEY}_1"))
    items = (reference(f"msg_{KEY}_1"), message("new"), reference(f"msg_{KEY}_i0"))
    resolved = await resolve(items, parent=None, find=responses.find)
    assert [item["id"] for item in resolved] == [f"msg_{KEY}_1", "new", f"msg_{KEY}_i0"]
    assert [item["type"] for item in resolved] == ["message"] * 3
    assert responses.asked == [f"resp_{KEY}"], "each response is read once"


async def test_items_of_the_parent_are_found_by_any_id():
    parent = make_response(KEY, "my-own")
    responses = Responses()
    assert await resolve((reference("my-own"),), parent=parent, find=responses.find) == (
        message("my-own"),
    )
    assert responses.asked == []


@pytest.mark.parametrize(
    "item_id", ["my-own", f"msg_{KEY}_7", f"msg_{OTHER_KEY}_0", f"msg_{KEY}_0x", "resp_" + KEY]
)
async def test_an_unknown_item_is_refused_with_its_location(item_id: str):
    responses = Responses(make_response(KEY, f"msg_{KEY}_0"))
    with pytest.raises(InvalidRequest, match="no item") as refused:
        await resolve((message("a"), reference(item_id)), parent=None, find=responses.find)
    assert refused.value.param == "input[1].id"


async def test_a_store_that_cannot_be_read_is_not_an_unknown_item():
    async def find(_: str) -> Any:
        raise store_unavailable()

    with pytest.raises(RequestRefused) as refused:
        await resolve((reference(f"msg_{KEY}_0"),), parent=None, find=find)
    assert refused.value.info.code == "store_unavailable"
