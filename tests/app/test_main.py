"""The whole application: which routes need a key, and what every response contains."""

from __future__ import annotations

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from streaming.backends.scripted import scripted_backend
from tests.app.serving import KEY, client, client_of, make_app, serving

PUBLIC = {
    *("/", "/static", "/docs", "/docs/websocket", "/openapi.json", "/asyncapi.json"),
    *("/health", "/livez", "/readyz"),
}
UPGRADE_ONLY = {"/v1/stream"}
"""Routes that answer plain HTTP with 426."""
NO_SOCKETS = "/{path:path}"
"""The route of WebSockets that match no other route."""


@pytest.mark.pain(17)
async def test_every_private_route_requires_the_key():
    async with (
        serving(scripted_backend(), api_keys=("secret",)) as (app, _),
        client(app) as calling,
    ):
        for route in iter_route_contexts(app.routes):
            path = str(route.path).replace("{model_id:path}", "scripted")
            for method in route.methods or ():
                response = await calling.request(method, path, json={"prompt": "a"})
                if route.path in PUBLIC:
                    assert response.status_code != 401, path
                elif route.path in UPGRADE_ONLY:
                    assert response.status_code == 426, path
                else:
                    assert response.status_code == 401, (method, path)
                    assert response.json()["error"]["code"] == "unauthorized"
                    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.pain(17)
def test_every_websocket_requires_the_key():
    app, _ = make_app(scripted_backend(), api_keys=("secret",))
    paths = [
        str(route.path)
        for route in iter_route_contexts(app.routes)
        if isinstance(route.original_route, WebSocketRoute)
    ]
    assert paths
    with TestClient(app) as calling:
        for path in paths:
            with pytest.raises(WebSocketDenialResponse) as refused:
                calling.websocket_connect(path).__enter__()
            assert refused.value.status_code == (404 if path == NO_SOCKETS else 401), path


@pytest.mark.parametrize(
    "key", [None, "Bearer wrong", "Bearer", "Basic secret", "secret", "Bearer \xff", "bearer  "]
)
async def test_wrong_key_is_refused(key: str | None):
    headers = [] if key is None else [(b"authorization", key.encode("latin-1"))]
    async with client_of(scripted_backend(), api_keys=("secret",)) as calling:
        response = await calling.get("/v1/models", headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")


async def test_right_key_is_accepted():
    async with client_of(scripted_backend(), api_keys=("other", "secret")) as calling:
        assert (await calling.get("/v1/models", headers=KEY)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/static/nothing.js", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("POST", "/static/main.js", 405, "method_not_allowed"),
    ],
)
async def test_unknown_routes_have_openais_error(method: str, path: str, status: int, code: str):
    async with client_of(scripted_backend()) as calling:
        response = await calling.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert ("allow" in response.headers) == (status == 405)


async def test_every_response_has_the_security_headers():
    async with client_of(scripted_backend(), max_message_bytes=1024) as calling:
        responses: list[httpx.Response] = [
            await calling.get("/"),
            await calling.get("/nothing"),
            await calling.post("/v1/completions", json={"prompt": "a", "stream": True}),
            await calling.post("/v1/completions", content=b"x" * 2000),
            await calling.post("/v1/completions", headers={"origin": "http://evil.test"}),
        ]
    assert [response.status_code for response in responses] == [200, 404, 200, 413, 403]
    for response in responses:
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"


async def test_cors_is_for_allowed_origins_only():
    preflight = {
        "origin": "https://page.test",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    foreign = {**preflight, "origin": "https://evil.test"}
    async with client_of(scripted_backend(), allowed_origins="https://page.test") as calling:
        allowed = await calling.options("/v1/completions", headers=preflight)
        refused = await calling.options("/v1/completions", headers=foreign)
        answer = await calling.post(
            "/v1/completions", json={"prompt": "a"}, headers={"origin": "https://page.test"}
        )
    assert allowed.headers["access-control-allow-origin"] == "https://page.test"
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://page.test"


async def test_pages_may_send_the_headers_of_openais_sdk():
    preflight = {
        "origin": "https://page.test",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    async with client_of(scripted_backend(), allowed_origins="https://page.test") as calling:
        allowed = await calling.options("/v1/completions", headers=preflight)
    assert (allowed.status_code, allowed.text) == (200, "OK")
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]


async def test_without_allowed_origins_there_is_no_cors():
    async with client_of(scripted_backend()) as calling:
        response = await calling.get("/v1/models", headers={"origin": "https://evil.test"})
    assert "access-control-allow-origin" not in response.headers
