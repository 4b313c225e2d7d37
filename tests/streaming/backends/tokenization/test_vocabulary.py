"""Bytes and lengths of tokens, for the kinds of vocabularies and normalizers in use."""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from streaming.backends.tokenization.tokenizer import wrap_tokenizer
from streaming.backends.tokenization.vocabulary import (
    LOOSE_MAX_CHARS_PER_TOKEN,
    check_token_ids,
    max_chars_per_token,
    to_bytes,
)
from streaming.errors import InvalidRequest
from tests.streaming.backends import tiny_models
from tests.streaming.backends.tiny_models import rust_tokenizer

LONGEST = len("<|endoftext|>")
LOOSE = LOOSE_MAX_CHARS_PER_TOKEN


# Bytes.


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


def test_the_bytes_of_tokens_join_to_the_text():
    """The texts of single tokens do not: parts of characters decode to U+FFFD."""
    tokenizer = wrap_tokenizer(tiny_models.hf_tokenizer(), vocab_size=1000)
    text = "hello é 日本 👩‍👧"
    token_ids = tokenizer.encode(text)
    assert "\ufffd" in "".join(map(tokenizer.token_text, token_ids))
    assert b"".join(tokenizer.token_bytes(token_id) or b"" for token_id in token_ids) == (
        text.encode()
    )


def test_a_special_token_has_the_bytes_of_its_text():
    tokenizer = wrap_tokenizer(tiny_models.hf_tokenizer(), vocab_size=1000)
    assert tokenizer.token_bytes(2) == b"<|im_end|>"


# Support by the model.


def test_ids_that_the_model_supports_are_returned():
    assert check_token_ids("prompt", [0, 9], 10) == [0, 9]
    assert check_token_ids("prompt", [], 10) == []


def test_an_id_that_the_model_does_not_support_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        check_token_ids("prompt", [3, 11, 10], 10)
    assert str(caught.value) == "prompt: the model does not support token 11"


# The bound on characters.


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (normalizers.NFC(), 4 * LONGEST),
        (normalizers.NFKC(), 4 * LONGEST),
        (normalizers.NFD(), LONGEST),
        (normalizers.Prepend("x"), LONGEST),
        (normalizers.Replace(" ", "▁"), LONGEST),
        (normalizers.Replace("  ", "▁"), LOOSE),
        (normalizers.Replace(Regex(" +"), " "), LOOSE),
        (normalizers.Strip(), LOOSE),
        (normalizers.BertNormalizer(), LOOSE),
        (normalizers.Sequence([normalizers.NFD(), normalizers.NFC()]), 4 * LONGEST),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), LOOSE),
    ],
    ids=str,
)
def test_normalizers(normalizer: Any, expected: int) -> None:
    tokenizer = rust_tokenizer()
    tokenizer.normalizer = normalizer
    assert max_chars_per_token(tokenizer) == expected


@pytest.mark.parametrize(
    ("pre_tokenizer", "expected"),
    [
        (pre_tokenizers.Metaspace(), LONGEST),
        (pre_tokenizers.Split(Regex(" "), "isolated"), LONGEST),
        (pre_tokenizers.Split(Regex(" "), "removed"), LOOSE),
        (pre_tokenizers.Whitespace(), LOOSE),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]), LONGEST),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Whitespace()]), LOOSE),
    ],
    ids=str,
)
def test_pre_tokenizers(pre_tokenizer: Any, expected: int) -> None:
    tokenizer = rust_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizer
    assert max_chars_per_token(tokenizer) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (models.BPE(vocab={"abc": 0, "u": 1}, merges=[], unk_token="u"), 3),
        (models.BPE(vocab={"abc": 0, "u": 1}, merges=[], unk_token="u", fuse_unk=True), LOOSE),
        (models.WordLevel(vocab={"abc": 0, "u": 1}, unk_token="u"), LOOSE),
        (models.Unigram([("u", 0.0), ("abc", -1.0)], unk_id=0), LOOSE),
    ],
    ids=["bpe", "fusing bpe", "word level", "unigram"],
)
def test_models(model: Any, expected: int) -> None:
    assert max_chars_per_token(Tokenizer(model)) == expected


def test_an_added_token_that_strips_spaces_has_no_bound() -> None:
    tokenizer = rust_tokenizer()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert len(tokenizer.encode(" " * 100 + "<mask>").ids) == 1
    assert max_chars_per_token(tokenizer) == LOOSE


def test_nfc_composes_at_most_four_characters_to_one() -> None:
    composed = (
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.normalize("NFC", char) == char
    )
    assert max(len(unicodedata.normalize("NFD", char)) for char in composed) == 4
