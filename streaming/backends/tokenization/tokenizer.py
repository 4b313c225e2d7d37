"""Hugging Face tokenizers behind the engine's `Tokenizer` protocol.

A fast tokenizer is driven through its Rust core, not through transformers' wrapper, for two
reasons. The wrapper sets truncation and padding on the shared core at each call, which fails with
"Already borrowed" when two threads do it at once. And of the core's methods only the batch ones let
go of the interpreter lock: `encode` of 1 MB holds it for a second, `encode_batch_fast` for
milliseconds.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from streaming.backend import EncodedPrompt, Tokenizer
from streaming.backends.chat_templates.chat_template import ChatTemplate
from streaming.backends.tokenization.token_bytes import to_bytes
from streaming.backends.tokenization.token_width import (
    LOOSE_MAX_CHARS_PER_TOKEN,
    max_chars_per_token,
)
from streaming.errors import InvalidRequest
from streaming.request import ChatPrompt

logger = logging.getLogger(__name__)

_NUM_READY_COPIES = 3
"""Of a tokenizer in Python: for a tokenizer thread, the engine, and the event loop."""


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
    """A tokenizer in Python. Special tokens in messages count as such. Thread-safe.

    Two threads cannot use one at once, so each call has a copy to itself: while one thread encodes
    a long prompt, the engine and the event loop decode. There are at most as many copies as threads
    have been in calls at once, but for those made ready. A tokenizer that cannot be copied serves
    one call after the other.

    Args:
        tokenizer: in Python, without a Rust core; owned from here on.
        vocab_size: ids that the model knows are below it.
    """

    max_chars_per_token = LOOSE_MAX_CHARS_PER_TOKEN

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self._copies = _copies_of(tokenizer)
        self._template = ChatTemplate(tokenizer)
        self._vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        with self._copies.lend() as hf:
            token_ids = hf.encode(text)
        return _checked("prompt", token_ids, self._vocab_size)

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        return self.prepare_chat(prompt).token_ids

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        text, output_format = self._template.render(prompt)
        with self._copies.lend() as hf:
            token_ids = hf.encode(text, add_special_tokens=False)
        return EncodedPrompt(_checked("messages", token_ids, self._vocab_size), output_format)

    def decode(self, token_ids: SequenceOf[int]) -> str:
        return self._decode(token_ids, skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        return self._decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes | None:
        with self._copies.lend() as hf:
            name = hf.convert_ids_to_tokens(token_id)
        return to_bytes(self.token_text(token_id), name=name)

    def _decode(self, token_ids: SequenceOf[int], *, skip_special_tokens: bool) -> str:
        with self._copies.lend() as hf:
            text: str = hf.decode(
                list(token_ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        return text


class _Copies:
    """Lends copies of an object, each to one borrower at a time.

    A borrower that finds none has one made, which takes a while; so some are made beforehand.
    """

    def __init__(self, original: Any, *, num_ready: int) -> None:
        self._original = original
        self._copying = threading.Lock()
        self._free = [self._copy() for _ in range(num_ready)]

    @contextmanager
    def lend(self) -> Iterator[Any]:
        try:
            copy = self._free.pop()  # atomic, as is `append`
        except IndexError:
            copy = self._copy()
        try:
            yield copy
        finally:
            self._free.append(copy)

    def _copy(self) -> Any:
        with self._copying:
            return deepcopy(self._original)


class _OnlyOne:
    """Lends the one object there is."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self._lock = threading.Lock()

    @contextmanager
    def lend(self) -> Iterator[Any]:
        with self._lock:
            yield self._original


def _copies_of(tokenizer: Any) -> _Copies | _OnlyOne:
    try:
        return _Copies(tokenizer, num_ready=_NUM_READY_COPIES)
    except Exception as error:  # noqa: BLE001 - a tokenizer's own code may raise anything
        logger.warning(
            "the tokenizer cannot be copied (%s: %s), so text is tokenised one call at a time: "
            "streams wait while a long prompt is read",
            type(error).__name__,
            error,
        )
        return _OnlyOne(tokenizer)


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
