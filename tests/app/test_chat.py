from __future__ import annotations

from app.chat import Chat
from app.settings import ClientSettings


def test_a_reply_that_cannot_be_had_again_stays():
    chat = Chat(ClientSettings(url="http://127.0.0.1:9"))
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    chat._messages = list(said)
    chat._obey("/retry")
    assert chat._messages == said
