"""The pages and their files."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.http.page import PAGES, add_pages
from app.main import STATIC_DIR
from streaming.backends.scripted import scripted_backend
from tests.app.serving import client, client_of


@pytest.fixture
def page(tmp_path: Path) -> httpx.AsyncClient:
    """A client of pages and a script in a temporary folder."""
    for name in PAGES.values():
        (tmp_path / name).write_text(f"<p>{name}</p>")
    (tmp_path / "main.js").write_text("start();")
    (tmp_path.parent / "secret").write_text("no")
    app = FastAPI(docs_url=None)
    add_pages(app, tmp_path)
    return client(app)


@pytest.mark.parametrize(
    ("path", "text", "content_type"),
    [
        *((path, f"<p>{name}</p>", "text/html") for path, name in PAGES.items()),
        ("/static/main.js", "start();", "javascript"),
    ],
)
async def test_pages_and_files_are_served(
    page: httpx.AsyncClient, path: str, text: str, content_type: str
):
    response = await page.get(path)
    assert (response.status_code, response.text) == (200, text)
    assert content_type in response.headers["content-type"]


@pytest.mark.parametrize("path", ["/", "/static/main.js"])
async def test_browsers_revalidate_each_time_and_load_once(page: httpx.AsyncClient, path: str):
    first = await page.get(path)
    again = await page.get(path, headers={"if-none-match": first.headers["etag"]})
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["/static/", "/static/none.js", "/static/../secret", "/static/%2e%2e/secret"]
)
async def test_nothing_else_is_served(page: httpx.AsyncClient, path: str):
    assert (await page.get(path)).status_code == 404


@pytest.mark.parametrize("name", PAGES.values())
async def test_every_file_that_a_page_loads_is_served(name: str):
    html = (STATIC_DIR / name).read_text()
    links = re.findall(r'(?:src|href)="([^"#]+)"', html)
    local = [link for link in links if "://" not in link and not link.endswith("openapi.json")]
    assert not re.findall(r'(?:src|<link[^>]*href)="https?://', html)
    async with client_of(scripted_backend()) as calling:
        responses = [await calling.get(f"/{link.lstrip('/.')}") for link in local]
    assert {str(r.url.path): r.status_code for r in responses if r.status_code != 200} == {}
    assert responses
