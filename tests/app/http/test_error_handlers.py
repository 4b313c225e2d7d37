from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.errors import ERRORS, ErrorInfo, RequestRefused
from app.http.error_handlers import add_exception_handlers, error_response
from streaming.errors import InvalidRequest, Overloaded
from tests.app.serving import client


def app_that_raises(error: Exception) -> FastAPI:
    app = FastAPI()
    add_exception_handlers(app)

    @app.get("/fail")
    async def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (InvalidRequest(param="n", reason="is odd"), 422, "invalid_request", "n"),
        (RequestRefused(ErrorInfo(code="unauthorized", message="no")), 401, "unauthorized", None),
        (HTTPException(404), 404, "not_found", None),
        (HTTPException(401), 404, "not_found", None),
        (HTTPException(405), 405, "method_not_allowed", None),
        (HTTPException(400, "so so"), 422, "invalid_request", None),
        (HTTPException(503, "a secret"), 500, "internal_error", None),
    ],
)
async def test_exceptions_have_openais_body(
    error: Exception, status: int, code: str, param: str | None
):
    async with client(app_that_raises(error)) as calling:
        response = await calling.get("/fail")
    body = response.json()["error"]
    assert response.status_code == status
    assert body.keys() == {"message", "type", "param", "code"}
    assert (body["code"], body["param"]) == (code, param)
    assert "secret" not in body["message"]


async def test_a_wrong_method_is_answered_with_the_methods_of_all_routes():
    app = app_that_raises(HTTPException(404))
    app.add_api_route("/fail", lambda: None, methods=["DELETE"])
    async with client(app) as calling:
        response = await calling.post("/fail")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, DELETE")


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (90.0, "90")]
)
async def test_retry_after_is_in_whole_seconds_and_at_least_1(seconds: float, header: str):
    error = Overloaded(num_waiting=1, max_waiting=1, retry_after_s=seconds)
    async with client(app_that_raises(error)) as calling:
        response = await calling.get("/fail")
    assert (response.status_code, response.headers["retry-after"]) == (503, header)


@pytest.mark.parametrize("code", ERRORS)
def test_only_unauthorized_has_www_authenticate(code: str):
    response = error_response(ErrorInfo(code=code, message="no"))
    assert response.status_code == ERRORS[code].http_status
    assert ("www-authenticate" in response.headers) == (code == "unauthorized")
    assert "retry-after" not in response.headers


async def test_a_disconnect_is_answered_with_499():
    async with client(app_that_raises(ClientDisconnect())) as calling:
        response = await calling.get("/fail")
    assert (response.status_code, response.content) == (499, b"")
