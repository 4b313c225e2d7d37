from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, StorageState, expect

from tests.e2e.browser import TIMEOUT_MS, open_browser
from tests.e2e.chat_page import ChatPage
from tests.e2e.server_process import ServerProcess
from tests.e2e.tcp_proxy import TcpProxy


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A server with the default model. It runs one sequence at a time, so others queue."""
    process = ServerProcess("--max-num-seqs", "1")
    yield process
    assert process.stop() == 0, process.log


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Start servers with other options; they are stopped after the test."""
    started: list[ServerProcess] = []

    def start(
        *flags: str, env: dict[str, str] | None = None, module: str | None = None
    ) -> ServerProcess:
        started.append(ServerProcess(*flags, env=env, module=module))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="session")
def scripted_server() -> Iterator[ServerProcess]:
    """A server with the scripted backend, which echoes the prompt without delay."""
    process = ServerProcess("--backend", "scripted")
    yield process
    assert process.stop() == 0, process.log


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with open_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., ChatPage]]:
    """Open chat pages, each in its own browser context; all are closed and checked at the end.

    `settings` are stored as the page's settings; other keyword arguments go to Playwright's
    `new_context`.
    """
    opened: list[ChatPage] = []

    def open_(
        url: str,
        settings: dict[str, Any] | None = None,
        connection: str = "open",
        **context: Any,
    ) -> ChatPage:
        entries: list[Any] = []
        if settings:
            entries = [{"name": "tokenwire.v1.settings", "value": json.dumps(settings)}]
        storage: StorageState = {"origins": [{"origin": url, "localStorage": entries}]}
        page = browser.new_context(storage_state=storage, **context).new_page()
        page.set_default_timeout(TIMEOUT_MS)
        opened.append(ChatPage(page, url))
        opened[-1].load(connection)
        return opened[-1]

    expect.set_options(timeout=TIMEOUT_MS)
    yield open_
    for chat in opened:
        chat.page.context.close()
    for chat in opened:
        chat.check()


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[TcpProxy]:
    """A proxy to the server with the default model."""
    proxy = TcpProxy(server.url)
    yield proxy
    proxy.close()
