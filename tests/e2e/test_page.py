"""The chat page in a real browser, with the default model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect
from websockets.sync.client import connect

from tests.e2e.chat_page import ChatPage, read_log
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(300)]

OpenPage = Callable[..., ChatPage]

STORY = "Tell me a long story about a dragon."


def _limited(max_tokens: int) -> dict[str, object]:
    return {"temperature": 0, "max_tokens": max_tokens}


@contextmanager
def _busy(server: ServerProcess) -> Iterator[Callable[[], None]]:
    """Occupy the model with another client's request; call the value to cancel it."""
    with connect(server.ws_url) as socket:
        request = {"type": "generate", "id": "long", "prompt": "Once", "max_tokens": 4000}
        socket.send(json.dumps({**request, "ignore_eos": True}))
        while json.loads(socket.recv())["type"] != "started":
            pass
        yield lambda: socket.send(json.dumps({"type": "cancel", "id": "long"}))


def test_reply_streams_and_shows_its_token_rate(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, _limited(24))
    chat.record_lengths()
    chat.send("What is the capital of France, and what is it known for?")
    expect(chat.question.get_by_test_id("message-text")).to_contain_text("capital of France")
    chat.expect_status("done")
    expect(chat.reply).to_contain_text("Paris")
    assert len(set(chat.seen_lengths)) >= 8
    assert chat.stored_text() == read_log(server.ws_url, chat.generation_id)
    expect(chat.reply.get_by_test_id("message-stats")).to_contain_text("tokens/s · first token")


def test_stop_ends_the_reply_on_the_server(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, _limited(2000))
    chat.send(STORY)
    chat.expect_growing()
    chat.get("stop").click()
    chat.expect_status("stopped")
    chat.expect_idle_server()
    expect(chat.get("send")).to_be_visible()
    assert chat.stored_text() == read_log(server.ws_url, chat.generation_id)
    expect(chat.reply.get_by_test_id("continue")).to_be_visible()


def test_escape_stops_the_reply_and_keeps_the_focus(
    server: ServerProcess, open_page: OpenPage
) -> None:
    chat = open_page(server.url, _limited(2000))
    chat.page.keyboard.type(STORY)  # the message box has the focus after loading
    chat.page.keyboard.press("Enter")
    chat.expect_growing()
    chat.page.keyboard.press("Escape")
    chat.expect_status("stopped")
    expect(chat.get("composer")).to_be_focused()
    chat.expect_idle_server()


def test_two_conversations_stream_at_the_same_time(
    server: ServerProcess, open_page: OpenPage
) -> None:
    chat = open_page(server.url, _limited(300))
    chat.send(STORY)
    chat.expect_growing()
    chat.get("new-chat").click()
    expect(chat.get("empty")).to_be_visible()
    chat.send("What is the capital of France?")
    expect(chat.get("streaming-dot")).to_have_count(2)
    chat.open(STORY)
    chat.expect_growing()
    chat.get("stop").click()
    chat.expect_status("stopped")
    assert chat.stored_text() == read_log(server.ws_url, chat.generation_id)
    chat.open("What is the capital of France?")
    chat.expect_status("done")
    expect(chat.reply).to_contain_text("Paris")
    assert chat.stored_text() == read_log(server.ws_url, chat.generation_id)
    expect(chat.get("streaming-dot")).to_have_count(0)


def test_queue_position_is_shown_while_waiting(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, _limited(6))
    other = open_page(server.url, _limited(6))
    with _busy(server) as release:
        chat.send("Hello")
        place = chat.reply.get_by_test_id("queue-position")
        expect(place).to_have_attribute("data-position", "0")
        expect(place).to_contain_text("Next in the queue")
        other.send("Hello")
        place = other.reply.get_by_test_id("queue-position")
        expect(place).to_have_attribute("data-position", "1")
        other.get("stop").click()
        other.expect_status("stopped")
        release()
        chat.expect_status("done")
    expect(chat.get("queue-position")).to_have_count(0)


def test_reply_is_complete_after_a_network_cut(
    server: ServerProcess, proxy, open_page: OpenPage
) -> None:
    chat = open_page(proxy.url, _limited(48))
    chat.watch.expect_error(r"WebSocket connection to|net::ERR_")
    chat.send(STORY)
    chat.expect_growing()
    proxy.cut()
    chat.expect_status("reconnecting")
    chat.expect_connection("reconnecting")
    before = chat.stored_text()
    proxy.mend()
    chat.expect_status("done")
    chat.expect_connection("open")
    (resumed,) = chat.sent_of("resume")[-1:]
    assert resumed["after"] >= 0
    text = chat.stored_text()
    assert text.startswith(before)
    assert 0 < len(before) < len(text)
    assert text == read_log(server.ws_url, chat.generation_id)


def test_reply_is_complete_after_a_silent_network_failure(
    server: ServerProcess, proxy, open_page: OpenPage
) -> None:
    chat = open_page(proxy.url, _limited(48))
    chat.send(STORY)
    chat.expect_growing()
    proxy.mute()
    # Simulate a network change, such as a phone switching from Wi-Fi to mobile data.
    chat.page.evaluate("dispatchEvent(new Event('online'))")
    chat.expect_status("done")
    assert len(chat.sent_of("resume")) == 1
    assert chat.stored_text() == read_log(server.ws_url, chat.generation_id)


def test_reply_is_complete_after_a_reload(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, _limited(48))
    chat.send(STORY)
    chat.expect_growing()
    generation_id = chat.generation_id
    chat.page.reload()
    chat.expect_status("done")
    assert chat.generation_id == generation_id
    (resumed,) = chat.sent_of("resume")
    assert resumed["after"] >= 0
    assert len(chat.sent_of("generate")) == 1
    assert chat.stored_text() == read_log(server.ws_url, generation_id)
    expect(chat.question.get_by_test_id("message-text")).to_have_text(STORY)


def test_reply_stopped_while_offline_is_cancelled_on_the_server(
    server: ServerProcess, proxy, open_page: OpenPage
) -> None:
    chat = open_page(proxy.url, _limited(2000))
    chat.watch.expect_error(r"WebSocket connection to|net::ERR_")
    chat.send(STORY)
    chat.expect_growing()
    proxy.cut()
    chat.expect_status("reconnecting")
    chat.get("stop").click()
    chat.expect_status("stopped")
    proxy.mend()
    chat.expect_connection("open")
    chat.expect_idle_server()


def test_reply_stopped_before_a_reload_is_cancelled_after_it(
    server: ServerProcess, proxy, open_page: OpenPage
) -> None:
    chat = open_page(proxy.url, _limited(2000))
    chat.send(STORY)
    chat.expect_growing()
    proxy.mute()
    chat.get("stop").click()
    expect(chat.reply).to_contain_text("Stopping…")
    chat.page.reload()
    chat.expect_status("stopped")
    chat.expect_idle_server()
