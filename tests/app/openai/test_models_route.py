"""`GET /v1/models`."""

from __future__ import annotations

from streaming.backends.scripted import scripted_backend
from tests.app.serving import client_of


async def test_the_served_model_is_listed():
    async with client_of(scripted_backend(max_model_len=99)) as calling:
        models = (await calling.get("/v1/models")).json()
        model = (await calling.get("/v1/models/scripted")).json()
    assert model.pop("created") > 1_600_000_000
    assert model == {
        "id": "scripted",
        "object": "model",
        "owned_by": "tokenwire",
        "max_model_len": 99,
    }
    assert models["object"] == "list"
    assert [listed["id"] for listed in models["data"]] == ["scripted"]


async def test_another_model_is_not_found_even_with_a_slash():
    async with client_of(scripted_backend()) as calling:
        response = await calling.get("/v1/models/org/name")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "model_not_found")
    assert "'org/name'" in error["message"]
