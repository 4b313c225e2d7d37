"""Starts Chromium and watches pages for errors, policy violations and foreign requests."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Playwright, sync_playwright

TIMEOUT_MS = 60_000
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
_WATCH_POLICY = """addEventListener("securitypolicyviolation", (event) =>
    reportViolation(`${event.violatedDirective}: ${event.blockedURI}`));"""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a headless Chromium.

    Playwright occupies the thread's event loop while it is open. Close it before the next async
    test.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_find(playwright), args=[*_FLAGS])
        try:
            yield browser
        finally:
            browser.close()


def _find(playwright: Playwright) -> str:
    """Return the path of a Chromium on `PATH`, or of the one that Playwright installed."""
    own = playwright.chromium.executable_path
    for path in (*map(shutil.which, _NAMES), own):
        if path and os.access(path, os.X_OK):
            return path
    raise AssertionError(
        f"no Chromium found: {', '.join(_NAMES)} are not on PATH, and {own} does not exist; "
        "run tests/e2e/install_browser.sh"
    )


class Watch:
    """Records a page's errors, requests and Content-Security-Policy violations.

    Args:
        page: A page that has not loaded anything yet.
    """

    def __init__(self, page: Page) -> None:
        self.violations: list[str] = []
        self.requests: list[str] = []
        self._errors: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        page.expose_function("reportViolation", lambda text: self.violations.append(text))
        page.add_init_script(_WATCH_POLICY)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        page.on("dialog", self._dialog)
        page.on("console", self._console)

    def expect_error(self, pattern: str) -> None:
        """Allow console messages that match; browsers log each failed request, for example."""
        self._expected.append(re.compile(pattern))

    def check(self, *hosts: str) -> None:
        """Fail on errors, violations, or requests to other hosts. `hosts` include their ports."""
        foreign = {url for url in self.requests if urlsplit(url).netloc not in ("", *hosts)}
        unexpected = [
            text for text in self._errors if not any(one.search(text) for one in self._expected)
        ]
        assert (self.violations, foreign, unexpected) == ([], set(), [])

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _dialog(self, dialog: Any) -> None:
        self._errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()
