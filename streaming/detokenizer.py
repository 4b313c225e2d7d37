"""Converts token ids to text incrementally, in time linear in the number of tokens.

A token may hold part of a character (byte-level BPE, byte fallback), and its text may depend on its
neighbours (a leading space). Each token is therefore decoded together with the few tokens before
it, and text is returned once it ends with a complete character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_NUM_CONTEXT_TOKENS = 5
"""Tokens before a new one that may change its text."""
_MAX_HELD_TOKENS = 8
"""Most tokens to wait for a complete character. It has at most four bytes (RFC 3629 §3), so at most
four tokens; the rest is for special tokens among them. Bytes that are incomplete by then are
returned as replacement characters."""


class Detokenizer:
    """Incremental `decode`: the results of `feed` and `flush` join to the whole text.

    Args:
        decode: converts token ids to text, without special tokens.
        prompt_ids: the tokens before the first new one.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._num_read = 0
        self._read_text = self._text = ""
        self._set_context(list(prompt_ids[-_NUM_CONTEXT_TOKENS:]))

    def feed(self, token_id: int) -> str:
        """Add a token and return the text that it completes, which may be empty."""
        is_holding = len(self._window) > self._num_read
        self._window.append(token_id)
        text = self._decode(self._window)
        is_whole = not text.endswith(REPLACEMENT)
        if text == self._text and is_whole and not is_holding:
            # A token without text. A special token does not affect its neighbours and is dropped.
            # A space that decodes to nothing because no text is before it does, and is kept.
            if text or len(self._window) > _NUM_CONTEXT_TOKENS:
                self._window.pop()
            self._num_read = len(self._window)
            return ""
        self._text = text
        if is_whole:
            piece = self._unread_text()
            self._set_context(self._window[self._num_read :])
            return piece
        if len(self._window) - self._num_read <= _MAX_HELD_TOKENS:
            return ""
        piece = self._unread_text()
        # Drop invalid bytes from the context: they would make the next characters invalid, too.
        del self._window[self._num_read :]
        self._text = self._read_text
        return piece

    def flush(self) -> str:
        """Return the remaining complete characters; drop an incomplete one at the end."""
        piece = self._unread_text().rstrip(REPLACEMENT)
        self._num_read = len(self._window)
        self._read_text = self._text
        return piece

    def _set_context(self, context: list[int]) -> None:
        """Start a new window with the tokens of `context`, from its first complete character on."""
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
        # Byte fallback decodes a run of bytes together, so an invalid byte makes the characters
        # before it invalid, too. Those have been returned already; decode the new tokens alone.
        return self._decode(self._window[self._num_read :])


def texts_of(
    token_ids: Sequence[int], *, decode: Callable[[Sequence[int]], str]
) -> tuple[str, ...]:
    """Return the text that each token completes, in order.

    An incomplete character at the end is dropped.

    Args:
        token_ids: at least one.
        decode: converts token ids to text; called once or twice per token.
    """
    detokenizer = Detokenizer(decode)
    texts = [detokenizer.feed(token_id) for token_id in token_ids]
    texts[-1] += detokenizer.flush()
    return tuple(texts)
