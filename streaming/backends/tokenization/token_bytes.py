"""The bytes that a token stands for, from its name in the vocabulary."""

from __future__ import annotations

import re
from functools import cache

from streaming.detokenizer import REPLACEMENT

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def to_bytes(text: str, *, name: str | None) -> bytes | None:
    """Return the UTF-8 of one token; None where only part of a character is known of it.

    Args:
        text: the token, decoded by itself.
        name: the token's name; byte-level vocabularies have a character for each byte, others may
            have names such as <0xE2> for what they have no token for.
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
    """Return GPT-2's alphabet of bytes: those that print stand for themselves, the others follow
    from U+0100 on, in order."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(0x100) if byte not in printed)
    return {chr(byte): byte for byte in printed} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }
