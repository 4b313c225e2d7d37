"""Hugging Face tokenizers behind the engine's `Tokenizer` protocol.

A fast tokenizer is driven through its Rust core, not through transformers' wrapper, for two
reasons. The wrapper sets truncation and padding on the shared core at each call, which fails with
"Already borrowed" when two threads do it at once. And of the core's methods only the batch ones let
go of the interpreter lock: `encode` of 1 MB holds it for a second, `encode_batch_fast` for
milliseconds.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from streaming.backend import EncodedPrompt, Tokenizer
from streaming.backends.chat_template import ChatTemplate
from streaming.backends.token_bytes import to_bytes
from streaming.backends.token_width import LOOSE_MAX_CHARS_PER_TOKEN, max_chars_per_token
from streaming.errors import InvalidRequest
from streaming.request import ChatPrompt


def wrap_tokenizer(tokenizer: Any, *, vocab_size: int) -> Tokenizer:
    """Return the engine's view of a transformers tokenizer.

    Args:
        vocab_size: ids that the model knows are below it.
    """
    if rust_core(tokenizer) is not None:
        return FastTokenizer(tokenizer, vocab_size=vocab_size)
    return SlowTokenizer(tokenizer, vocab_size=vocab_size)


def rust_core(tokenizer: Any) -> RustTokenizer | None:
    """Return what a fast transformers tokenizer is made of; None for a slow one."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    return core if isinstance(core, RustTokenizer) else None


class FastTokenizer:
    """A tokenizer with a Rust core. Thread-safe.

    In a raw prompt special tokens may be written out and count as such. In a conversation they are
    the template's alone: "<|im_end|>" inside a message is plain text and ends no turn. In what the
    model writes they have no text, but for those that set calls of tools and reasoning off.
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self._rust: RustTokenizer = tokenizer.backend_tokenizer
        # Truncation that the file carries would shorten prompts without a word.
        self._rust.no_truncation()
        self._rust.no_padding()
        self._vocab_size = vocab_size
        highest_id = max(self._rust.get_vocab(with_added_tokens=True).values(), default=0)
        self._has_foreign_ids = highest_id >= vocab_size
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
        marks = "\n".join(self._template.format.marks)
        shown = [text for text in special if text in marks]
        self._hidden_ids = {
            token_id
            for token_id, token in self._rust.get_added_tokens_decoder().items()
            if token.special and token.content not in shown
        }
        self.max_chars_per_token = max_chars_per_token(self._rust)
        self._anchor = self._encode("a", with_specials=False)[-1:]

    def encode(self, text: str) -> list[int]:
        return self._checked("prompt", self._encode(text, with_specials=True))

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        return self.prepare_chat(prompt).token_ids

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        hidden = _HiddenSpecials(self._special_pattern)
        text, output_format = self._template.render(prompt, hide=hidden.hide)
        token_ids: list[int] = []
        for piece, is_plain in hidden.split(text):
            core = self._plain_rust if is_plain else self._rust
            token_ids += core.encode_batch_fast([piece], add_special_tokens=False)[0].ids
        return EncodedPrompt(self._checked("messages", token_ids), output_format)

    def decode(self, token_ids: SequenceOf[int]) -> str:
        shown_ids = [token_id for token_id in token_ids if token_id not in self._hidden_ids]
        text: str = self._rust.decode(shown_ids, skip_special_tokens=False)
        return text

    def token_text(self, token_id: int) -> str:
        # Decoders drop the space before the first token, so it is read behind another one.
        before = self._rust.decode(self._anchor, skip_special_tokens=False)
        text: str = self._rust.decode([*self._anchor, token_id], skip_special_tokens=False)
        return text.removeprefix(before)

    def token_bytes(self, token_id: int) -> bytes | None:
        return to_bytes(self.token_text(token_id), name=self._rust.id_to_token(token_id))

    def _encode(self, text: str, *, with_specials: bool) -> list[int]:
        encodings = self._rust.encode_batch_fast([text], add_special_tokens=with_specials)
        token_ids: list[int] = encodings[0].ids
        return token_ids

    def _checked(self, param: str, token_ids: list[int]) -> list[int]:
        return _checked(param, token_ids, self._vocab_size) if self._has_foreign_ids else token_ids

    @cached_property
    def _plain_rust(self) -> RustTokenizer:
        """A copy that reads special tokens as plain text; made when a message first has one."""
        copy = RustTokenizer.from_str(self._rust.to_str())
        copy.encode_special_tokens = True
        return copy


class SlowTokenizer:
    """A tokenizer in Python, one call at a time. Special tokens in messages count as such."""

    max_chars_per_token = LOOSE_MAX_CHARS_PER_TOKEN

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self._hf = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._vocab_size = vocab_size
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        with self._lock:
            return _checked("prompt", self._hf.encode(text), self._vocab_size)

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        return self.prepare_chat(prompt).token_ids

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        text, output_format = self._template.render(prompt)
        with self._lock:
            token_ids = self._hf.encode(text, add_special_tokens=False)
        return EncodedPrompt(_checked("messages", token_ids, self._vocab_size), output_format)

    def decode(self, token_ids: SequenceOf[int]) -> str:
        return self._decode(token_ids, skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        return self._decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes | None:
        with self._lock:
            name = self._hf.convert_ids_to_tokens(token_id)
        return to_bytes(self.token_text(token_id), name=name)

    def _decode(self, token_ids: SequenceOf[int], *, skip_special_tokens: bool) -> str:
        with self._lock:
            text: str = self._hf.decode(
                list(token_ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        return text


class _HiddenSpecials:
    """Keeps special tokens that users wrote out of the template's text, and gives them back."""

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self._found: list[str] = []
        self._mark = f"x{secrets.token_hex(8)}n"  # letters and digits: no template changes them

    def hide(self, text: str) -> str:
        return self._pattern.sub(self._replace, text) if self._pattern else text

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Return the pieces of a text with marks, and for each whether a user wrote it as mark."""
        if not self._found:
            return [(text, False)]
        pieces = re.split(f"{self._mark}(\\d+)x", text)
        return [
            (self._found[int(piece)], True) if index % 2 else (piece, False)
            for index, piece in enumerate(pieces)
        ]

    def _replace(self, match: re.Match[str]) -> str:
        self._found.append(match[0])
        return f"{self._mark}{len(self._found) - 1}x"


def _checked(param: str, token_ids: list[int], vocab_size: int) -> list[int]:
    """Refuse tokens that the tokenizer has and the model lacks, such as those of images."""
    if (highest := max(token_ids, default=0)) >= vocab_size:
        raise InvalidRequest(param=param, reason=f"the model has no token {highest}")
    return token_ids
