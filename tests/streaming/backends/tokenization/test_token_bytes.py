from __future__ import annotations

import pytest

from streaming.backends.tokenization.token_bytes import to_bytes
from streaming.backends.tokenization.tokenizer import wrap_tokenizer
from tests.streaming.backends import tiny_models


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (" hello", "Ġhello", b" hello"),
        ("é", "Ã©", "é".encode()),
        ("\ufffd", "Ã", b"\xc3"),
        ("\ufffd", "Ł", b"\x9f"),
        ("\ufffd", "<0xE2>", b"\xe2"),
        ("\ufffd", "日", None),
        ("\ufffd", None, None),
    ],
)
def test_bytes_of_a_token(text: str, name: str | None, expected: bytes | None):
    assert to_bytes(text, name=name) == expected


def test_the_bytes_of_tokens_join_to_the_text_though_their_texts_do_not():
    tokenizer = wrap_tokenizer(tiny_models.hf_tokenizer(), vocab_size=1000)
    text = "hello é 日本 👩‍👧"
    token_ids = tokenizer.encode(text)
    assert "\ufffd" in "".join(map(tokenizer.token_text, token_ids))
    assert b"".join(tokenizer.token_bytes(token_id) or b"" for token_id in token_ids) == (
        text.encode()
    )


def test_a_special_token_is_written_out():
    tokenizer = wrap_tokenizer(tiny_models.hf_tokenizer(), vocab_size=1000)
    assert tokenizer.token_bytes(2) == b"<|im_end|>"
