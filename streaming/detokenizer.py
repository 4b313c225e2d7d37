"""Token ids in, whole characters out, in time linear in the number of tokens.

A token may hold part of a character (byte-level BPE, byte fallback) and its text may depend on its
neighbours (a leading space). So a token is decoded together with the few tokens before it, and text
is set free only when it no longer ends inside a character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_NUM_CONTEXT_TOKENS = 5
"""Tokens before the first new one that may change how it is written."""
_MAX_HELD_REPLACEMENTS = 3
"""A character has at most four bytes, so at most three wait for the last (RFC 3629 §3)."""

_MAX_HELD_TOKENS = 8
"""Bytes that no token has completed by then are no character; they are shown as replaced."""


class Detokenizer:
    """Incremental `decode`: the pieces that `feed` and `flush` return join to the whole text.

    Args:
        decode: turns token ids into text, leaving special tokens out.
        prompt_ids: what the new tokens follow.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._window = list(prompt_ids[-_NUM_CONTEXT_TOKENS:])
        self._num_read = len(self._window)
        self._read_text = decode(self._window)
        self._text = self._read_text

    def feed(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be none."""
        self._window.append(token_id)
        text = self._decode(self._window)
        is_holding = self._text != self._read_text
        if text == self._text and not is_holding:
            self._window.pop()  # a token without text, like a special one: it cannot change others
            return ""
        self._text = text
        num_replaced = len(text) - len(text.rstrip(REPLACEMENT))
        num_held = len(self._window) - self._num_read
        if 0 < num_replaced <= _MAX_HELD_REPLACEMENTS and num_held <= _MAX_HELD_TOKENS:
            return ""
        piece = text[len(self._read_text) :]
        self._window = self._window[self._num_read :]
        self._num_read = len(self._window)
        self._read_text = self._text = self._decode(self._window)
        return piece

    def flush(self) -> str:
        """Return the whole characters still held; half a character at the very end is dropped."""
        piece = self._text[len(self._read_text) :].rstrip(REPLACEMENT)
        self._read_text = self._text
        return piece
