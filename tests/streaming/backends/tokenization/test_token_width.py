from __future__ import annotations

import sys
import unicodedata
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from streaming.backends.tokenization.token_width import (
    LOOSE_MAX_CHARS_PER_TOKEN,
    max_chars_per_token,
)
from tests.streaming.backends.tiny_models import rust_tokenizer

LONGEST = len("<|endoftext|>")
LOOSE = LOOSE_MAX_CHARS_PER_TOKEN


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


def test_added_token_that_swallows_spaces_has_no_true_bound() -> None:
    tokenizer = rust_tokenizer()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert len(tokenizer.encode(" " * 100 + "<mask>").ids) == 1
    assert max_chars_per_token(tokenizer) == LOOSE


def test_composition_makes_one_character_of_four_at_most() -> None:
    composed = (
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.normalize("NFC", char) == char
    )
    assert max(len(unicodedata.normalize("NFD", char)) for char in composed) == 4
