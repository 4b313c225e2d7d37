"""Page object for the chat page: user actions, expectations and what the page stores."""

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
    const lengths = (window.seenLengths = []);
    const record = () => {
        const texts = document.querySelectorAll("[data-role=assistant] [data-testid=message-text]");
        const length = texts.length ? texts[texts.length - 1].textContent.length : 0;
        if (length && length !== lengths.at(-1)) lengths.push(length);
    };
    const options = { childList: true, subtree: true, characterData: true };
    new MutationObserver(record).observe(document.getElementById("log"), options);
}"""

_IS_GROWING = """() => {
    const reply = [...document.querySelectorAll("[data-role=assistant]")].at(-1);
    const text = reply?.querySelector("[data-testid=message-text]").textContent ?? "";
    return reply?.dataset.status === "streaming" && text.trim().includes(" ");
}"""

_LAST_GENERATION_ID = """() => {
    const replies = [...document.querySelectorAll("[data-testid=message][data-role=assistant]")];
    return replies.at(-1)?.dataset.generationId ?? null;
}"""

# The page itself does not scroll, so check the elements that can.
_OVERFLOW = """() => Math.max(
    ...["html", "#scroller", ".settings-body"]
        .map((selector) => document.querySelector(selector))
        .map((node) => node.scrollWidth - node.clientWidth)
)"""


class ChatPage:
    """One chat page in its own browser context. `check` fails if the page logged errors.

    Args:
        page: A page that has not loaded anything yet.
        url: Base URL of the server, or of a proxy to it.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.watch = Watch(page)
        self.sent: list[Frame] = []
        page.on("websocket", lambda socket: socket.on("framesent", self._record_sent))

    def load(self, connection: str = "open") -> None:
        """Load the page and wait for this connection state."""
        self.page.goto(self.url)
        self.expect_connection(connection)

    def send(self, text: str) -> None:
        """Type a message and click Send."""
        self.get("composer").fill(text)
        self.get("send").click()

    def open(self, title: str) -> None:
        """Open the conversation with this title."""
        self.get("conversation").get_by_role("button", name=title).first.click()
        expect(self.page.get_by_role("heading", name=title)).to_be_visible()

    def ask(self, text: str) -> str:
        """Send a message, wait for the reply to finish, and return its stored text."""
        before = self.page.evaluate(_LAST_GENERATION_ID)
        self.send(text)
        # Until the next render, the last reply on the page is the previous one, which is done.
        self.page.wait_for_function(
            f"(before) => ![before, null].includes(({_LAST_GENERATION_ID})())", arg=before
        )
        self.expect_status("done")
        return self.stored_text()

    def get(self, test_id: str) -> Locator:
        """Return the elements with this `data-testid`."""
        return self.page.get_by_test_id(test_id)

    @property
    def question(self) -> Locator:
        """The last user message."""
        return self.page.locator("[data-testid=message][data-role=user]").last

    @property
    def reply(self) -> Locator:
        """The last reply."""
        return self.page.locator("[data-testid=message][data-role=assistant]").last

    def expect_status(self, *statuses: str) -> None:
        """Wait until the last reply has one of these statuses."""
        expect(self.reply).to_have_attribute("data-status", re.compile("|".join(statuses)))

    def expect_connection(self, state: str) -> None:
        """Wait for this connection state."""
        expect(self.get("connection-status")).to_have_attribute("data-state", state)

    def expect_growing(self) -> None:
        """Wait until the last reply is streaming and shows at least two words."""
        # Polls once per animation frame: a fast model may finish between two polls of `expect`.
        self.page.wait_for_function(_IS_GROWING)

    def record_lengths(self) -> None:
        """Start recording the text lengths of the last reply; read them from `seen_lengths`."""
        self.page.evaluate(_RECORD_LENGTHS)

    @property
    def seen_lengths(self) -> list[int]:
        """The recorded lengths, in characters."""
        lengths: list[int] = self.page.evaluate("window.seenLengths")
        return lengths

    @property
    def generation_id(self) -> str:
        """The generation id of the last reply."""
        generation_id = self.reply.get_attribute("data-generation-id")
        assert generation_id
        return generation_id

    def stored_text(self) -> str:
        """Return the text of the last reply in the browser's storage."""
        stored = self.page.evaluate("({ ...localStorage })")
        prefix = "tokenwire.v1.conversation."
        for key, value in stored.items():
            if key.startswith(prefix):
                for message in json.loads(value)["messages"].values():
                    if message.get("generationId") == self.generation_id:
                        assert isinstance(message["text"], str)
                        return message["text"]
        raise AssertionError(f"{self.generation_id} is not stored")

    def sent_of(self, frame_type: str) -> list[Frame]:
        """Return the frames of this type that the page has sent."""
        return [frame for frame in self.sent if frame["type"] == frame_type]

    def expect_idle_server(self) -> None:
        """Wait until the server has no active or queued generations."""
        self.page.wait_for_function(
            """async () => {
                const health = await (await fetch("/health")).json();
                return health.active === 0 && health.queued === 0;
            }"""
        )

    def scroll_overflow_px(self) -> int:
        """Return the largest horizontal overflow, in CSS pixels."""
        overflow: int = self.page.evaluate(_OVERFLOW)
        return overflow

    def check(self) -> None:
        """Fail on errors, policy violations, or requests to other hosts."""
        self.watch.check(urlsplit(self.url).netloc)

    def _record_sent(self, payload: str | bytes) -> None:
        self.sent.append(json.loads(payload))


def read_log(ws_url: str, generation_id: str) -> str:
    """Return the full text of a generation from the server's log."""
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
