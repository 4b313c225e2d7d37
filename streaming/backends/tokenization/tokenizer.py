"""Adapts Hugging Face tokenizers to the engine's `Tokenizer` protocol.

A fast tokenizer is used through its Rust core instead of the wrapper in transformers, for two
reasons. The wrapper sets truncation and padding on the shared core at each call, which fails with
"Already borrowed" if two threads do it at once. And only the core's batch methods release the
interpreter lock: for 1 MB of text `encode` holds it for a second, `encode_batch_fast` for
milliseconds.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from streaming.backend import EncodedPrompt, Tokenizer
from streaming.backends.chat_templates.chat_template import ChatTemplate
from streaming.backends.tokenization.slow_tokenizer import SlowTokenizer
from streaming.backends.tokenization.vocabulary import (
    check_token_ids,
    max_chars_per_token,
    to_bytes,
)
from streaming.request import ChatPrompt


def wrap_tokenizer(tokenizer: Any, *, vocab_size: int) -> Tokenizer:
    """Return a transformers tokenizer as the engine's `Tokenizer`.

    Args:
        tokenizer: a fast or slow transformers tokenizer; the result owns it.
        vocab_size: number of ids that the model supports; larger ids are refused.
    """
    if rust_core(tokenizer) is not None:
        return FastTokenizer(tokenizer, vocab_size=vocab_size)
    return SlowTokenizer(tokenizer, vocab_size=vocab_size)


def rust_core(tokenizer: Any) -> RustTokenizer | None:
    """Return the Rust core of a fast transformers tokenizer, or None for a slow one."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    return core if isinstance(core, RustTokenizer) else None


class FastTokenizer:
    """A tokenizer with a Rust core. Thread-safe.

    A raw prompt can contain special tokens as text. In a conversation only the template writes
    them: "<|im_end|>" inside a message is plain text and does not end the turn. Decoding omits
    special tokens except those that mark tool calls and reasoning.

    Args:
        tokenizer: a fast transformers tokenizer; owned from here on.
        vocab_size: number of ids that the model supports; larger ids are refused.
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self._rust: RustTokenizer = tokenizer.backend_tokenizer
        # Truncation stored in the tokenizer's file would cut prompts silently.
        self._rust.no_truncation()
        self._rust.no_padding()
        self._vocab_size = vocab_size
        highest_id = max(self._rust.get_vocab(with_added_tokens=True).values(), default=0)
        self._has_unsupported_ids = highest_id >= vocab_size
        special = sorted(
            (
                token.content
                for token in self._rust.get_added_tokens_decoder().values()
                if token.special
            ),
            key=len,
            reverse=True,
        )
        self._special_pattern = re.compile("|".join(map(re.escape, special))) if special else None
        self._template = ChatTemplate(tokenizer)
        marks = "\n".join(self._template.format.delimiters)
        shown = [text for text in special if text in marks]
        self._hidden_ids = {
            token_id
            for token_id, token in self._rust.get_added_tokens_decoder().items()
            if token.special and token.content not in shown
        }
        self.max_chars_per_token = max_chars_per_token(self._rust)
        self._anchor = self._encode("a", with_specials=False)[-1:]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a raw prompt.

        Raises:
            InvalidRequest: the prompt has a token that the model does not support.
        """
        return self._checked("prompt", self._encode(text, with_specials=True))

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Return the ids of a conversation; see `prepare_chat`."""
        return self.prepare_chat(prompt).token_ids

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        """Return the ids of a conversation and the format of the answer to it.

        Raises:
            InvalidRequest: the conversation cannot be rendered or encoded.
        """
        escaper = _SpecialTokenEscaper(self._special_pattern)
        text, output_format = self._template.render(prompt, escape=escaper.escape)
        token_ids: list[int] = []
        for piece, is_plain in escaper.split(text):
            core = self._plain_rust if is_plain else self._rust
            token_ids += core.encode_batch_fast([piece], add_special_tokens=False)[0].ids
        return EncodedPrompt(self._checked("messages", token_ids), output_format)

    def decode(self, token_ids: SequenceOf[int]) -> str:
        """Return the text, without special tokens other than marks of calls and reasoning."""
        shown_ids = [token_id for token_id in token_ids if token_id not in self._hidden_ids]
        text: str = self._rust.decode(shown_ids, skip_special_tokens=False)
        return text

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, special ones included."""
        # Decoders drop the space before the first token, so decode it after another token.
        before = self._rust.decode(self._anchor, skip_special_tokens=False)
        text: str = self._rust.decode([*self._anchor, token_id], skip_special_tokens=False)
        return text.removeprefix(before)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the UTF-8 bytes of one token, or None if they are unknown."""
        return to_bytes(self.token_text(token_id), name=self._rust.id_to_token(token_id))

    def _encode(self, text: str, *, with_specials: bool) -> list[int]:
        encodings = self._rust.encode_batch_fast([text], add_special_tokens=with_specials)
        token_ids: list[int] = encodings[0].ids
        return token_ids

    def _checked(self, param: str, token_ids: list[int]) -> list[int]:
        if not self._has_unsupported_ids:
            return token_ids
        return check_token_ids(param, token_ids, self._vocab_size)

    @cached_property
    def _plain_rust(self) -> RustTokenizer:
        """A copy that encodes special tokens as plain text, made when a message first has one."""
        copy = RustTokenizer.from_str(self._rust.to_str())
        copy.encode_special_tokens = True
        return copy


class _SpecialTokenEscaper:
    """Replaces special tokens in a caller's texts by placeholders, and finds these in the prompt.

    Args:
        pattern: matches all special tokens; None if there are none.
    """

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self._found: list[str] = []
        # Letters and digits only, so that templates leave it as it is; random, so that a caller
        # cannot write it.
        self._placeholder = f"x{secrets.token_hex(8)}n"

    def escape(self, text: str) -> str:
        """Return a text with placeholders for its special tokens."""
        return self._pattern.sub(self._replace, text) if self._pattern else text

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Split a prompt at the placeholders.

        Returns:
            Each piece, and whether it is a special token of the caller, to encode as plain text.
        """
        if not self._found:
            return [(text, False)]
        pieces = re.split(f"{self._placeholder}(\\d+)x", text)
        return [
            (self._found[int(piece)], True) if index % 2 else (piece, False)
            for index, piece in enumerate(pieces)
        ]

    def _replace(self, match: re.Match[str]) -> str:
        self._found.append(match[0])
        return f"{self._placeholder}{len(self._found) - 1}x"
