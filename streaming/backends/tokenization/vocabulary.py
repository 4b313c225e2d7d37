"""Properties of a vocabulary's tokens: their bytes, their length, and which a model supports."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from streaming.detokenizer import REPLACEMENT
from streaming.errors import InvalidRequest

LOOSE_MAX_CHARS_PER_TOKEN = 1024
"""Assumed for tokenizers that can drop text, for which no bound exists."""

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""Name of a token for one byte, in vocabularies with byte fallback."""

_NFC_SHRINKAGE = 4
"""Most characters that NFC or NFKC composes to one: U+1F82, of U+03B1 and three marks."""
_SHRINKAGE = {
    "NFC": _NFC_SHRINKAGE,
    "NFKC": _NFC_SHRINKAGE,
    "NFD": 1,
    "NFKD": 1,
    "ByteLevel": 1,
    "Prepend": 1,
}
"""Most characters that each kind of normalizer makes one."""
_LOSSLESS_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits"}


def to_bytes(text: str, *, name: str | None) -> bytes | None:
    """Return the UTF-8 bytes of one token, or None if they are part of a character and unknown.

    Args:
        text: the token decoded by itself; part of a character decodes to U+FFFD.
        name: the token's name in the vocabulary. Byte-level vocabularies write each byte as one
            character; vocabularies with byte fallback have names such as <0xE2>.
    """
    if REPLACEMENT not in text:
        return text.encode()
    if name is None:
        return None
    if found := _BYTE_FALLBACK.fullmatch(name):
        return bytes([int(found[1], 16)])
    values = _byte_of_char()
    if all(char in values for char in name):
        return bytes(values[char] for char in name)
    return None


@cache
def _byte_of_char() -> dict[str, int]:
    """Return the byte of each character in GPT-2's byte-level alphabet.

    Printable Latin-1 characters stand for themselves. The other bytes are numbered from U+0100.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(0x100) if byte not in printed)
    return {chr(byte): byte for byte in printed} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def check_token_ids(param: str, token_ids: list[int], vocab_size: int) -> list[int]:
    """Return the ids of a prompt if the model supports them all.

    A tokenizer can have more tokens than its model, such as those of images.

    Args:
        param: the request's parameter with the prompt, for the error.
        token_ids: the ids of the prompt.
        vocab_size: number of ids that the model supports.

    Raises:
        InvalidRequest: an id is `vocab_size` or higher.
    """
    if (highest := max(token_ids, default=0)) >= vocab_size:
        raise InvalidRequest(param=param, reason=f"the model does not support token {highest}")
    return token_ids


def max_chars_per_token(tokenizer: Tokenizer) -> int:
    """Return a bound on the characters of a prompt that become one token.

    The bound is the longest token's name times the characters that normalization can make one. It
    also holds for byte-level vocabularies: their names have one character for each byte, and a
    character has at least one byte.
    """
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    longest = max((len(token) for token in vocab), default=1)
    strips = any(
        token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()
    )
    shrinkage = _shrinkage(_stage_config(tokenizer.normalizer))
    is_bounded = (
        not strips
        and shrinkage is not None
        and _keeps_all_text(_stage_config(tokenizer.pre_tokenizer))
        and _has_bounded_unknowns(tokenizer.model)
    )
    if not is_bounded or shrinkage is None:
        return max(longest, LOOSE_MAX_CHARS_PER_TOKEN)
    return longest * shrinkage


def _stage_config(stage: Any) -> dict[str, Any] | None:
    """Return the configuration of a normalizer or pre-tokenizer as in `tokenizer.json`."""
    if stage is None:
        return None
    config: dict[str, Any] = json.loads(stage.__getstate__())
    return config


def _shrinkage(normalizer: dict[str, Any] | None) -> int | None:
    """Return the most characters that a normalizer can make one, or None if it has no bound."""
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


def _keeps_all_text(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Return whether a pre-tokenizer drops no characters."""
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(map(_keeps_all_text, pre_tokenizer["pretokenizers"]))
    if kind == "Split":
        return bool(pre_tokenizer["behavior"] != "Removed")
    return kind in _LOSSLESS_PRE_TOKENIZERS


def _has_bounded_unknowns(model: Any) -> bool:
    """Return whether unknown characters never fuse into one token."""
    if type(model).__name__ != "BPE":
        return False
    return bool(model.byte_fallback or not (model.unk_token and model.fuse_unk))
