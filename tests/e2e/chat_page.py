"""The chat page in a browser, in the words of someone who uses it."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Locator, Page, expect
from websockets.sync.client import connect

from tests.e2e.browser import Watch

Frame = dict[str, Any]

_RECORD_LENGTHS = """() => {
    const seen = (window.seenLengths = []);
    const look = () => {
        const texts = document.querySelectorAll("[data-role=assistant] [data-testid=message-text]");
        const length = texts.length ? texts[texts.length - 1].textContent.length : 0;
        if (length && length !== seen.at(-1)) seen.push(length);
    };
    const what = { childList: true, subtree: true, characterData: true };
    new MutationObserver(look).observe(document.getElementById("log"), what);
}"""

_IS_GROWING = """() => {
    const reply = [...document.querySelectorAll("[data-role=assistant]")].at(-1);
    const text = reply?.querySelector("[data-testid=message-text]").textContent ?? "";
    return reply?.dataset.status === "streaming" && text.trim().includes(" ");
}"""

_LAST_HANDLE = """() => {
    const replies = [...document.querySelectorAll("[data-testid=message][data-role=assistant]")];
    return replies.at(-1)?.dataset.generationId ?? null;
}"""

# The page itself never scrolls; its parts would.
_OVERFLOW = """() => Math.max(
    ...["html", "#scroller", ".settings-body"]
        .map((selector) => document.querySelector(selector))
        .map((node) => node.scrollWidth - node.clientWidth)
)"""


class ChatPage:
    """One page in its own browser context, watched for errors.

    Args:
        page: a page that has not loaded anything yet.
        url: of the server, or of a proxy to it.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.watch = Watch(page)
        self.sent: list[Frame] = []
        page.on("websocket", lambda socket: socket.on("framesent", self._note_sent))

    def load(self, connection: str = "open") -> None:
        self.page.goto(self.url)
        self.expect_connection(connection)

    def send(self, text: str) -> None:
        self.get("composer").fill(text)
        self.get("send").click()

    def open(self, title: str) -> None:
        """Show the conversation of this title."""
        self.get("conversation").get_by_role("button", name=title).first.click()
        expect(self.page.get_by_role("heading", name=title)).to_be_visible()

    def ask(self, text: str) -> str:
        """Send, wait for the whole reply, and return its text as stored."""
        before = self.page.evaluate(_LAST_HANDLE)
        self.send(text)
        # The reply before is the last one until the page paints again, and it is done.
        self.page.wait_for_function(
            f"(before) => ![before, null].includes(({_LAST_HANDLE})())", arg=before
        )
        self.expect_status("done")
        return self.stored_text()

    def get(self, test_id: str) -> Locator:
        return self.page.get_by_test_id(test_id)

    @property
    def question(self) -> Locator:
        """The last message of the user."""
        return self.page.locator("[data-testid=message][data-role=user]").last

    @property
    def reply(self) -> Locator:
        """The last reply."""
        return self.page.locator("[data-testid=message][data-role=assistant]").last

    def expect_status(self, *statuses: str) -> None:
        """Wait until the last reply stands in one of `statuses`."""
        expect(self.reply).to_have_attribute("data-status", re.compile("|".join(statuses)))

    def expect_connection(self, state: str) -> None:
        expect(self.get("connection-status")).to_have_attribute("data-state", state)

    def expect_growing(self) -> None:
        """Wait until the last reply streams and shows some text."""
        # Looked at in each frame: a fast model may be done before `expect` looks again.
        self.page.wait_for_function(_IS_GROWING)

    def record_lengths(self) -> None:
        """Note from now on each length of text that the last reply shows."""
        self.page.evaluate(_RECORD_LENGTHS)

    @property
    def seen_lengths(self) -> list[int]:
        lengths: list[int] = self.page.evaluate("window.seenLengths")
        return lengths

    @property
    def generation_id(self) -> str:
        """The server's handle of the last reply."""
        handle = self.reply.get_attribute("data-generation-id")
        assert handle
        return handle

    def stored_text(self) -> str:
        """Return the text that this browser keeps of the last reply."""
        stored = self.page.evaluate("({ ...localStorage })")
        prefix = "tokenwire.v1.conversation."
        for key, value in stored.items():
            if key.startswith(prefix):
                for message in json.loads(value)["messages"].values():
                    if message.get("generationId") == self.generation_id:
                        assert isinstance(message["text"], str)
                        return message["text"]
        raise AssertionError(f"{self.generation_id} is not stored")

    def sent_of(self, kind: str) -> list[Frame]:
        return [frame for frame in self.sent if frame["type"] == kind]

    def expect_idle_server(self) -> None:
        """Wait until the server says that nothing runs or waits."""
        self.page.wait_for_function(
            """async () => {
                const health = await (await fetch("/health")).json();
                return health.active === 0 && health.queued === 0;
            }"""
        )

    def scroll_overflow_px(self) -> int:
        """Return by how much what is shown is wider than the room it has."""
        overflow: int = self.page.evaluate(_OVERFLOW)
        return overflow

    def check(self) -> None:
        """Fail if anything went wrong on this page that no test may pass over."""
        self.watch.check(urlsplit(self.url).netloc)

    def _note_sent(self, payload: str | bytes) -> None:
        self.sent.append(json.loads(payload))


def read_log(ws_url: str, generation_id: str) -> str:
    """Return the text of a generation as the server has it, from its start to its end."""
    text = ""
    with connect(ws_url) as socket:
        socket.send(json.dumps({"type": "resume", "generation_id": generation_id, "after": -1}))
        for message in socket:
            frame = json.loads(message)
            assert frame["type"] != "error", frame
            if frame["type"] == "delta":
                text += frame["text"]
            if frame["type"] == "done":
                break
    return text
