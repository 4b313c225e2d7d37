"""`GET /asyncapi.json`: its `servers` and access."""

from __future__ import annotations

from streaming.backends.scripted import scripted_backend
from tests.app.described import DOCUMENT
from tests.app.serving import client_of


async def test_the_document_names_the_server_of_the_request() -> None:
    async with client_of(scripted_backend()) as calling:
        plain = await calling.get("/asyncapi.json")
        secure = await calling.get("https://localhost:8443/asyncapi.json")
    assert plain.headers["content-type"] == "application/json"
    document = plain.json()
    servers = document.pop("servers")
    document["info"]["version"] = "test"
    assert document == DOCUMENT
    assert (servers["tokenwire"]["host"], servers["tokenwire"]["protocol"]) == ("localhost", "ws")
    server = secure.json()["servers"]["tokenwire"]
    assert (server["host"], server["protocol"]) == ("localhost:8443", "wss")


async def test_the_document_needs_no_key_and_is_not_in_openapi() -> None:
    async with client_of(scripted_backend(), api_keys=("secret",)) as calling:
        assert (await calling.get("/asyncapi.json")).status_code == 200
        routes = (await calling.get("/openapi.json")).json()["paths"]
    assert "/asyncapi.json" not in routes
