from __future__ import annotations

from typing import Any

import pytest

from app.http.middleware.body_limit import BodyLimit
from app.http.middleware.error_boundary import ErrorBoundary
from app.http.middleware.origin_check import OriginCheck
from app.http.middleware.security_headers import CONTENT_SECURITY_POLICY, SecurityHeaders


async def receive() -> dict[str, Any]:
    return {"type": "websocket.connect"}


async def send(_: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("middleware", "options"),
    [
        (SecurityHeaders, {}),
        (OriginCheck, {"allowed": ()}),
        (ErrorBoundary, {}),
        (BodyLimit, {"max_bytes": 1}),
    ],
)
async def test_websockets_pass_through(middleware: Any, options: dict[str, Any]):
    calls: list[Any] = []

    async def app(*call: Any) -> None:
        calls.append(call)

    scope = {"type": "websocket", "headers": [(b"content-length", b"9"), (b"origin", b"x")]}
    await middleware(app, **options)(scope, receive, send)
    assert calls == [(scope, receive, send)]


def test_the_policy_allows_no_other_source():
    directives = dict(part.strip().split(" ", 1) for part in CONTENT_SECURITY_POLICY.split(";"))
    assert directives["default-src"] == "'self'"
    assert directives["frame-ancestors"] == "'none'"
    assert "script-src" not in directives
    assert not any("unsafe" in value or "*" in value for value in directives.values())
