from __future__ import annotations

import pytest

from streaming.backends.scripted import scripted_backend
from tests.app.serving import client_of

OURS = "http://localhost"
PAGE = "https://page.test"


@pytest.mark.pain(17)
@pytest.mark.parametrize(
    ("origin", "allowed", "may_call"),
    [
        (None, (), True),
        (OURS, (), True),
        (OURS.upper(), (), True),
        (PAGE, (PAGE,), True),
        (PAGE, ("*",), True),
        (PAGE, (), False),
        ("null", (), False),
        ("", (), False),
        ("http://[::1", (), False),
        ("http://localhost:81", (), False),
        ("http://localhost.evil.test", (), False),
        ("http://page.test", (PAGE,), False),
    ],
)
async def test_pages_of_other_origins_may_not_post(
    origin: str | None, allowed: tuple[str, ...], may_call: bool
):
    headers = {} if origin is None else {"origin": origin}
    async with client_of(scripted_backend(), allowed_origins=allowed) as calling:
        response = await calling.post("/v1/completions", json={"prompt": "a"}, headers=headers)
    if may_call:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden_origin")


async def test_pages_of_other_origins_may_get():
    async with client_of(scripted_backend()) as calling:
        response = await calling.get("/health", headers={"origin": PAGE})
    assert response.status_code == 200
