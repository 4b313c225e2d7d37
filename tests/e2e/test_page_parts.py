"""Parts of the chat page in a real browser. The scripted backend echoes each message."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import TIMEOUT_MS, Watch
from tests.e2e.chat_page import ChatPage
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

OpenPage = Callable[..., ChatPage]

MARKDOWN = """Here:

# A heading

- one
- **two**

| a | b |
|---|---|
| 1 | 2 |

```python
print("<b>")
```

and `x < y`."""

HOSTILE = """see

<script>window.isHacked = true</script>
<img src=x onerror="window.isHacked = true">
<svg onload="window.isHacked = true"></svg>
<iframe src="https://evil.example/"></iframe>

[a](javascript:window.isHacked=true) [b](data:text/html,<script>1</script>)
<a href="javascript:window.isHacked=true" onclick="window.isHacked=true">c</a>
![picture](https://evil.example/x.png) [good](https://good.example/)

```"><img src=x onerror=window.isHacked=true>
code
```
<style>body { display: none }</style>"""


@pytest.fixture
def chat(scripted_server: ServerProcess, open_page: OpenPage) -> ChatPage:
    """A chat page on the scripted server."""
    return open_page(scripted_server.url)


def test_markdown_is_rendered(chat: ChatPage) -> None:
    chat.ask(MARKDOWN)
    text = chat.reply.get_by_test_id("message-text")
    expect(text.get_by_role("heading", name="A heading")).to_be_visible()
    expect(text.get_by_role("listitem")).to_have_text(["one", "two"])
    expect(text.get_by_role("cell", name="2")).to_be_visible()
    expect(text.locator("pre > code")).to_have_text('print("<b>")\n')
    expect(text.locator("p > code")).to_have_text("x < y")


def test_code_and_replies_are_copied(chat: ChatPage) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text = chat.ask(MARKDOWN)
    chat.reply.get_by_test_id("copy").click()
    expect(chat.reply.get_by_role("button", name="Copied", exact=True)).to_be_visible()
    assert chat.page.evaluate("navigator.clipboard.readText()") == text
    chat.reply.get_by_test_id("copy-code").click()
    expect(chat.reply.get_by_test_id("copy-code")).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()").strip() == 'print("<b>")'


def test_hostile_markup_is_shown_as_text(chat: ChatPage) -> None:
    chat.ask(HOSTILE)
    text = chat.reply.get_by_test_id("message-text")
    expect(text).to_contain_text("window.isHacked = true")
    expect(text.locator("script, img, svg:not(.icon), iframe, style, [onclick]")).to_have_count(0)
    hrefs = [link.get_attribute("href") for link in text.get_by_role("link").all()]
    assert hrefs == ["https://evil.example/x.png", "https://good.example/"]
    expect(chat.question).to_contain_text("<script>")
    assert chat.page.evaluate("window.isHacked") is None
    expect(chat.get("composer")).to_be_visible()


def test_unclosed_angle_brackets_lose_no_text(chat: ChatPage) -> None:
    text = "compare <code>x<y &lt; z</code> and <pre>a<b</pre> to the end"
    chat.ask(text)
    expect(chat.reply.get_by_test_id("message-text")).to_contain_text(text)


def test_regenerate_keeps_the_first_reply(chat: ChatPage) -> None:
    first = chat.ask("again, please")
    first_id = chat.generation_id
    chat.reply.get_by_test_id("regenerate").click()
    expect(chat.reply.get_by_test_id("version")).to_have_text("2/2")
    chat.expect_status("done")
    assert chat.generation_id != first_id
    assert chat.stored_text() == first
    chat.reply.get_by_test_id("previous-version").click()
    expect(chat.reply.get_by_test_id("version")).to_have_text("1/2")
    assert chat.generation_id == first_id


def test_edited_message_replaces_the_original(chat: ChatPage) -> None:
    chat.ask("an apple")
    chat.ask("a pear")
    chat.question.hover()
    chat.question.get_by_test_id("edit").click()
    chat.get("edit-text").fill("a plum")
    chat.get("save-edit").click()
    expect(chat.question).to_contain_text("a plum")
    expect(chat.question.get_by_test_id("version")).to_have_text("2/2")
    chat.expect_status("done")
    expect(chat.reply).to_contain_text("an apple")
    expect(chat.reply).to_contain_text("a plum")
    expect(chat.get("log")).not_to_contain_text("a pear")
    assert [one["content"] for one in chat.sent_of("generate")[-1]["messages"]][-1] == "a plum"


def test_settings_are_sent_and_survive_a_reload(chat: ChatPage) -> None:
    chat.get("settings").click()
    chat.get("system-prompt").fill("Be a pirate.")
    chat.get("temperature").fill("0.7")
    chat.get("top-p").fill("")
    chat.get("max-tokens").fill("20")
    chat.page.keyboard.press("Escape")
    expect(chat.get("settings-dialog")).to_be_hidden()
    chat.page.reload()
    text = chat.ask("hello")
    (request,) = chat.sent_of("generate")
    assert (request["temperature"], request["max_tokens"]) == (0.7, 20)
    assert "top_p" not in request
    assert request["messages"][0] == {"role": "system", "content": "Be a pirate."}
    assert text == "system: Be a pirate."


def test_invalid_setting_shows_an_error_and_is_not_saved(chat: ChatPage) -> None:
    chat.get("settings").click()
    temperature = chat.get("temperature")
    temperature.fill("3")
    expect(temperature).to_have_attribute("aria-invalid", "true")
    expect(temperature).to_have_accessible_description("Must be at least 0 and at most 2.")
    chat.get("close-settings").click()
    chat.ask("hello")
    assert chat.sent_of("generate")[0]["temperature"] == 0.2


def test_page_asks_for_the_api_key_and_works_with_it(start_server, open_page: OpenPage) -> None:
    server = start_server("--backend", "scripted", "--api-keys", "right-key")
    chat = open_page(server.url, connection="unauthorized")
    chat.watch.expect_error(r"WebSocket connection to|status of 401")
    expect(chat.get("key-panel")).to_contain_text("This server requires an API key.")
    expect(chat.get("banner-key")).to_be_focused()
    chat.page.keyboard.type("wrong-key")
    chat.page.keyboard.press("Enter")
    expect(chat.get("key-panel")).to_contain_text("This API key is not valid.")
    chat.get("banner-key").fill("right-key")
    chat.page.keyboard.press("Enter")
    chat.expect_connection("open")
    expect(chat.get("key-panel")).to_be_hidden()
    expect(chat.get("composer")).to_be_focused()
    chat.ask("hello")
    chat.page.reload()
    chat.expect_connection("open")
    chat.ask("hello again")
    assert not [url for url in chat.watch.requests if "right-key" in url]


def test_page_is_usable_by_keyboard(chat: ChatPage) -> None:
    keys = chat.page.keyboard
    expect(chat.get("composer")).to_be_focused()
    keys.type("one")
    keys.press("Shift+Enter")
    keys.type("two")
    keys.press("Enter")
    chat.expect_status("done")
    expect(chat.question.get_by_test_id("message-text")).to_have_text("one\ntwo")
    expect(chat.get("composer")).to_be_focused()
    keys.press("ArrowUp")
    expect(chat.get("edit-text")).to_be_focused()
    keys.press("Escape")
    expect(chat.get("edit-text")).to_have_count(0)
    chat.get("composer").focus()
    keys.press("Shift+Tab")
    expect(chat.reply.get_by_test_id("regenerate")).to_be_focused()
    keys.press("Enter")
    expect(chat.reply.get_by_test_id("version")).to_have_text("2/2")
    expect(chat.get("composer")).to_be_focused()
    chat.expect_status("done")
    keys.type("three")
    keys.press("Tab")
    expect(chat.get("send")).to_be_focused()
    keys.press("Enter")
    expect(chat.question).to_contain_text("three")
    expect(chat.get("composer")).to_be_focused()
    chat.get("settings").focus()
    keys.press("Enter")
    expect(chat.get("settings-dialog")).to_be_visible()
    keys.press("Escape")
    expect(chat.get("settings-dialog")).to_be_hidden()
    expect(chat.get("settings")).to_be_focused()


def test_focus_stays_on_the_version_buttons(chat: ChatPage) -> None:
    keys = chat.page.keyboard
    chat.ask("hello")
    for number in (2, 3):
        chat.reply.get_by_test_id("regenerate").click()
        expect(chat.reply.get_by_test_id("version")).to_have_text(f"{number}/{number}")
        chat.expect_status("done")
    chat.reply.get_by_test_id("previous-version").focus()
    keys.press("Enter")
    expect(chat.reply.get_by_test_id("version")).to_have_text("2/3")
    expect(chat.reply.get_by_test_id("previous-version")).to_be_focused()
    keys.press("Enter")
    expect(chat.reply.get_by_test_id("version")).to_have_text("1/3")
    expect(chat.reply.get_by_test_id("next-version")).to_be_focused()


def test_focus_is_never_lost(chat: ChatPage) -> None:
    keys = chat.page.keyboard
    composer = chat.get("composer")
    chat.ask("a\n\n" * 60)
    chat.page.evaluate("document.getElementById('scroller').scrollTop = 0")
    chat.get("jump-latest").press("Enter")
    expect(composer).to_be_focused()
    chat.get("conversation-more").press("Enter")
    chat.get("delete").press("Enter")
    expect(composer).to_be_focused()
    chat.get("undo").press("Enter")
    expect(composer).to_be_focused()
    chat.question.get_by_test_id("edit").press("Enter")
    chat.get("edit-text").fill("b")
    keys.press("Enter")
    expect(chat.question.get_by_test_id("version")).to_have_text("2/2")
    chat.expect_status("done")
    chat.question.get_by_test_id("previous-version").click()
    expect(chat.question.get_by_test_id("version")).to_have_text("1/2")
    chat.question.get_by_test_id("edit").press("Enter")
    keys.press("Escape")
    expect(chat.question.get_by_test_id("next-version")).to_be_focused()


def test_text_direction_follows_the_script(chat: ChatPage) -> None:
    text = "مرحبا (hello)!\n\n- أول (one).\n\n- last\n\n```\nمرحبا\n```"
    chat.get("composer").fill(text)
    expect(chat.get("composer")).to_have_css("direction", "rtl")
    chat.ask(text)
    expect(chat.question.get_by_test_id("message-text")).to_have_css("direction", "rtl")
    reply = chat.reply.get_by_test_id("message-text")
    expect(reply.get_by_role("list")).to_have_css("direction", "rtl")
    expect(reply.get_by_text("user: ")).to_have_css("direction", "ltr")
    expect(reply.locator("pre")).to_have_css("direction", "ltr")


# Safari sends the Enter that confirms an IME character like this.
_END_COMPOSITION = """(area) => area.dispatchEvent(
    new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true, cancelable: true })
)"""


def test_enter_that_confirms_an_ime_character_sends_nothing(chat: ChatPage) -> None:
    chat.get("composer").fill("にほん")
    assert chat.get("composer").evaluate(_END_COMPOSITION)
    expect(chat.get("composer")).to_have_value("にほん")
    chat.ask("hello")
    chat.question.get_by_test_id("edit").press("Enter")
    assert chat.get("edit-text").evaluate(_END_COMPOSITION)
    expect(chat.get("edit-text")).to_be_visible()
    chat.get("conversation-more").press("Enter")
    chat.get("rename").press("Enter")
    assert chat.get("rename-input").evaluate(_END_COMPOSITION)
    expect(chat.get("rename-input")).to_be_visible()


def test_page_fits_a_phone(scripted_server: ServerProcess, open_page: OpenPage) -> None:
    phone = {"width": 320, "height": 640}
    chat = open_page(scripted_server.url, viewport=phone, has_touch=True, is_mobile=True)
    long_line = "```\n" + "word " * 60 + "\n```\n\n" + "x" * 300
    chat.ask(long_line)
    assert chat.scroll_overflow_px() == 0
    expect(chat.get("composer")).to_be_in_viewport(ratio=1)
    chat.get("open-sidebar").tap()
    expect(chat.get("new-chat")).to_be_in_viewport(ratio=1)
    expect(chat.get("new-chat")).to_be_focused()
    chat.page.keyboard.press("Escape")
    expect(chat.get("new-chat")).not_to_be_in_viewport()
    chat.get("settings").tap()
    expect(chat.get("close-settings")).to_be_in_viewport(ratio=1)
    assert chat.scroll_overflow_px() == 0


def test_escape_that_closes_the_sidebar_does_not_stop_a_reply(
    scripted_server: ServerProcess, open_page: OpenPage
) -> None:
    chat = open_page(scripted_server.url, viewport={"width": 390, "height": 844})
    chat.watch.expect_error("net::ERR_INTERNET_DISCONNECTED")
    chat.page.context.set_offline(True)
    chat.send("not answered yet")
    chat.get("open-sidebar").click()
    chat.page.keyboard.press("Escape")
    expect(chat.get("open-sidebar")).to_be_focused()
    expect(chat.reply).to_contain_text("Sending…")
    chat.page.keyboard.press("Escape")
    expect(chat.reply).to_contain_text(re.compile("Stopping…|Stopped."))


def test_theme_survives_a_reload(chat: ChatPage) -> None:
    root = chat.page.locator("html")
    light = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    chat.get("theme-toggle").click()
    chat.get("theme-toggle").click()
    expect(root).to_have_attribute("data-theme", "dark")
    chat.page.reload()
    expect(root).to_have_attribute("data-theme", "dark")
    assert chat.page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_message_written_offline_is_sent_after_the_reconnect(chat: ChatPage) -> None:
    chat.watch.expect_error("net::ERR_INTERNET_DISCONNECTED")
    chat.ask(MARKDOWN)
    chat.page.context.set_offline(True)
    expect(chat.reply.get_by_role("heading", name="A heading")).to_be_visible()
    chat.get("settings").click()
    chat.get("close-settings").click()
    chat.get("new-chat").click()
    chat.send("written offline")
    expect(chat.reply).to_contain_text("Sending…")
    chat.page.context.set_offline(False)
    chat.expect_status("done")
    expect(chat.reply).to_contain_text("user: written offline")


# Click and type in one task, so that the page cannot render in between.
_CLICK_AND_TYPE = """([testId, text]) => {
    const composer = document.getElementById("composer");
    document.querySelector(`[data-testid=${testId}]`).click();
    composer.setRangeText(text, composer.selectionStart, composer.selectionEnd, "end");
    composer.dispatchEvent(new InputEvent("input", { bubbles: true }));
}"""


def test_text_typed_before_the_new_chat_renders_goes_to_its_draft(chat: ChatPage) -> None:
    chat.ask("hello")
    chat.get("composer").fill("a draft")
    chat.page.evaluate(_CLICK_AND_TYPE, ["new-chat", "typed at once"])
    expect(chat.get("empty")).to_be_visible()
    expect(chat.get("composer")).to_have_value("typed at once")
    chat.open("hello")
    expect(chat.get("composer")).to_have_value("a draft")
    chat.get("new-chat").click()
    expect(chat.get("composer")).to_have_value("typed at once")


def test_text_typed_before_the_first_message_renders_is_kept(chat: ChatPage) -> None:
    chat.get("composer").fill("hello")
    chat.page.evaluate(_CLICK_AND_TYPE, ["send", "and then"])
    chat.expect_status("done")
    expect(chat.reply).to_contain_text("user: hello")
    expect(chat.get("composer")).to_have_value("and then")


def test_deleted_conversation_can_be_restored(chat: ChatPage) -> None:
    chat.ask("keep me")
    row = chat.get("conversation")
    row.hover()
    row.get_by_test_id("conversation-more").click()
    chat.get("delete").click()
    expect(row).to_have_count(0)
    chat.get("undo").click()
    expect(row).to_have_count(1)
    expect(chat.reply).to_contain_text("keep me")


def test_api_docs_are_rendered(scripted_server: ServerProcess, browser: Browser) -> None:
    page = browser.new_page()
    watch = Watch(page)
    page.goto(f"{scripted_server.url}/docs")
    expect(page.get_by_text("/v1/completions").first).to_be_visible(timeout=TIMEOUT_MS)
    page.close()
    watch.check(scripted_server.url.removeprefix("http://"))
