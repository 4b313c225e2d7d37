"""How much text one token can stand for: bounds a prompt before it is tokenised."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

LOOSE_MAX_CHARS_PER_TOKEN = 1024
"""For tokenizers that can drop text, of which no true bound exists."""

_NFC_SHRINKAGE = 4
"""Characters that composition (NFC, NFKC) makes one of, at most: U+1F82 of U+03B1 and 3 marks."""
_SHRINKAGE = {
    "NFC": _NFC_SHRINKAGE,
    "NFKC": _NFC_SHRINKAGE,
    "NFD": 1,
    "NFKD": 1,
    "ByteLevel": 1,
    "Prepend": 1,
}
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits"}


def max_chars_per_token(tokenizer: Tokenizer) -> int:
    """Return the longest token's length, with what the tokenizer's stages shrink or drop.

    Tokens of byte-level vocabularies are written with one character for each byte, and a character
    has at least one, so the length of a token's name is a bound there too.
    """
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    longest = max((len(token) for token in vocab), default=1)
    swallows = any(
        token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()
    )
    shrinkage = _shrinkage(_stage(tokenizer.normalizer))
    is_bounded = (
        not swallows
        and shrinkage is not None
        and _keeps_all(_stage(tokenizer.pre_tokenizer))
        and _names_all(tokenizer.model)
    )
    if not is_bounded or shrinkage is None:
        return max(longest, LOOSE_MAX_CHARS_PER_TOKEN)
    return longest * shrinkage


def _stage(stage: Any) -> dict[str, Any] | None:
    if stage is None:
        return None
    parts: dict[str, Any] = json.loads(stage.__getstate__())
    return parts


def _shrinkage(normalizer: dict[str, Any] | None) -> int | None:
    """Return how many characters at most become one; None where there is no bound."""
    if normalizer is None:
        return 1
    kind = normalizer["type"]
    if kind == "Sequence":
        product = 1
        for part in normalizer["normalizers"]:
            if (factor := _shrinkage(part)) is None:
                return None
            product *= factor
        return product
    if kind == "Replace":
        pattern = normalizer["pattern"].get("String")
        return 1 if pattern and len(normalizer["content"]) >= len(pattern) else None
    return _SHRINKAGE.get(kind)


def _keeps_all(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(map(_keeps_all, pre_tokenizer["pretokenizers"]))
    if kind == "Split":
        return bool(pre_tokenizer["behavior"] != "Removed")
    return kind in _KEEPING_PRE_TOKENIZERS


def _names_all(model: Any) -> bool:
    """Whether no run of unknown characters melts into one token."""
    if type(model).__name__ != "BPE":
        return False
    return bool(model.byte_fallback or not (model.unk_token and model.fuse_unk))
