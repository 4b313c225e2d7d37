"""The example page `examples/page.html`, served from another origin than the API."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import TIMEOUT_MS
from tests.e2e.server_process import ROOT, ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture
def examples_url() -> Iterator[str]:
    """Serve the examples on another origin, as `python -m http.server` does."""
    handler = partial(SimpleHTTPRequestHandler, directory=ROOT / "examples")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        thread = threading.Thread(target=files.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{files.server_port}"
        files.shutdown()
        thread.join()


def test_page_from_an_allowed_origin_streams(
    start_server, examples_url: str, browser: Browser
) -> None:
    server = start_server("--backend", "scripted", "--allowed-origins", examples_url)
    page = browser.new_page()
    page.goto(f"{examples_url}/page.html?server={server.url.removeprefix('http://')}")
    page.get_by_role("button", name="Go").click()
    expect(page.locator("pre")).to_have_text("Once upon a time", timeout=TIMEOUT_MS)
    page.close()


def test_page_from_another_origin_is_rejected(
    scripted_server: ServerProcess, examples_url: str, browser: Browser
) -> None:
    page = browser.new_page()
    page.goto(f"{examples_url}/page.html?server={scripted_server.url.removeprefix('http://')}")
    with page.expect_console_message(lambda message: "403" in message.text, timeout=TIMEOUT_MS):
        page.get_by_role("button", name="Go").click()
    expect(page.locator("pre")).to_be_empty()
    page.close()
