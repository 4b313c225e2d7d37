"""The WebSocket reference at `/docs/websocket`, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import TIMEOUT_MS, Watch
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(params=["light", "dark"])
def page(
    browser: Browser, scripted_server: ServerProcess, request: pytest.FixtureRequest
) -> Iterator[Page]:
    """An empty page, in a light and a dark theme. Fails at the end if the page had errors."""
    expect.set_options(timeout=TIMEOUT_MS)
    context = browser.new_context(color_scheme=request.param, base_url=scripted_server.url)
    page = context.new_page()
    watch = Watch(page)
    yield page
    context.close()
    watch.check(urlsplit(scripted_server.url).netloc)


def test_page_shows_the_whole_document(page: Page, scripted_server: ServerProcess) -> None:
    page.goto("/docs/websocket")
    expect(page.locator("main[aria-busy]")).to_have_count(0)
    document = httpx.get(f"{scripted_server.url}/asyncapi.json").json()
    ids = page.get_by_test_id("message").evaluate_all("nodes => nodes.map((node) => node.id)")
    assert sorted(ids) == sorted(document["components"]["messages"])
    for channel in document["channels"].values():
        expect(page.get_by_role("heading", name=channel["title"])).to_be_visible()
        address = scripted_server.url.replace("http", "ws") + channel["address"]
        expect(page.get_by_text(address, exact=True)).to_be_visible()
    text = page.inner_text("main")
    assert all(row["code"] in text for row in document["x-errors"])


def test_fragment_opens_its_message_and_keyboard_works(page: Page) -> None:
    page.goto("/docs/websocket#stream.generate")
    message = page.locator("[id='stream.generate']")
    expect(message).to_have_attribute("open", "")
    expect(message.get_by_text("Once upon a time")).to_be_visible()
    message.get_by_text("MessageFields", exact=True).click()
    expect(message.get_by_text('"user"').first).to_be_visible()
    message.locator("summary").first.focus()
    page.keyboard.press("Enter")
    expect(message).not_to_have_attribute("open", "")
    contents = page.get_by_role("navigation", name="On this page")
    contents.get_by_role("link", name="done", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator("[id='stream.done']")).to_have_attribute("open", "")


def test_console_sends_an_example(page: Page) -> None:
    page.goto("/docs/websocket")
    page.get_by_test_id("console-send").first.click()
    log = page.get_by_test_id("console-log").first
    expect(log).to_contain_text('"finish_reason":"stop"')
    text = page.get_by_test_id("console-text").first
    text.fill('{"type":"nonsense"}')
    page.get_by_test_id("console-send").first.click()
    expect(log).to_contain_text('"unknown_type"')
    page.get_by_role("button", name="Disconnect").first.click()
    expect(page.get_by_text("Closed", exact=True)).to_be_visible()


def test_pages_link_to_each_other_and_fit_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/docs")
    page.get_by_role("link", name="WebSockets").click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    page.get_by_role("link", name="HTTP").click()
    expect(page.locator(".opblock").first).to_be_visible()
