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
_MAX_HELD_TOKENS = 8
"""A character has at most four bytes (RFC 3629 §3), so at most four tokens, and some room for
special ones among them. Bytes that no token has completed by then are shown as replaced."""


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
        self._window: list[int] = []
        self._num_read = 0
        self._read_text = self._text = ""
        self._follow(list(prompt_ids[-_NUM_CONTEXT_TOKENS:]))

    def feed(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be none."""
        is_holding = len(self._window) > self._num_read
        self._window.append(token_id)
        text = self._decode(self._window)
        is_whole = not text.endswith(REPLACEMENT)
        if text == self._text and is_whole and not is_holding:
            # A token without text: a special one, which cannot change others, or a space that only
            # has no text because none is before it, which can.
            if text or len(self._window) > _NUM_CONTEXT_TOKENS:
                self._window.pop()
            self._num_read = len(self._window)
            return ""
        self._text = text
        if is_whole:
            piece = self._unread_text()
            self._follow(self._window[self._num_read :])
            return piece
        if len(self._window) - self._num_read <= _MAX_HELD_TOKENS:
            return ""
        piece = self._unread_text()
        # Broken bytes are no context: they would break the characters after them, too.
        del self._window[self._num_read :]
        self._text = self._read_text
        return piece

    def flush(self) -> str:
        """Return the whole characters still held; half a character at the very end is dropped."""
        piece = self._unread_text().rstrip(REPLACEMENT)
        self._num_read = len(self._window)
        self._read_text = self._text
        return piece

    def _follow(self, context: list[int]) -> None:
        """Take `context` as read, from its first whole character on."""
        read_text = self._decode(context)
        while read_text.startswith(REPLACEMENT):
            context = context[1:]
            read_text = self._decode(context)
        self._window = context
        self._num_read = len(context)
        self._read_text = self._text = read_text

    def _unread_text(self) -> str:
        if self._text.startswith(self._read_text.rstrip(REPLACEMENT)):
            return self._text[len(self._read_text) :]
        # Byte fallback decodes a run of bytes as one, so a broken byte unmakes the whole characters
        # before it, which have been read and stay as they are.
        return self._decode(self._window[self._num_read :])


def texts_of(
    token_ids: Sequence[int], *, decode: Callable[[Sequence[int]], str]
) -> tuple[str, ...]:
    """Return the text that each token sets free, one after the other.

    A character that the last token leaves incomplete is dropped.

    Args:
        token_ids: at least one.
        decode: turns token ids into text; called once or twice for each token.
    """
    detokenizer = Detokenizer(decode)
    texts = [detokenizer.feed(token_id) for token_id in token_ids]
    texts[-1] += detokenizer.flush()
    return tuple(texts)
