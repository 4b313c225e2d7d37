"""Adapts tokenizers in Python to the engine's `Tokenizer` protocol, and makes them thread-safe."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from streaming.backend import EncodedPrompt
from streaming.backends.chat_templates.chat_template import ChatTemplate
from streaming.backends.tokenization.vocabulary import (
    LOOSE_MAX_CHARS_PER_TOKEN,
    check_token_ids,
    to_bytes,
)
from streaming.request import ChatPrompt

logger = logging.getLogger(__name__)

_NUM_READY_COPIES = 3
"""Copies of a Python tokenizer made at load time: one each for a tokenizer thread, the engine and
the event loop."""


class SlowTokenizer:
    """A tokenizer in Python. Special tokens in messages are encoded as such. Thread-safe.

    A tokenizer in Python is not thread-safe, so each call borrows a copy: the engine and the event
    loop can decode while another thread encodes a long prompt. The number of copies is the largest
    number of simultaneous calls so far, and at least `_NUM_READY_COPIES`. A tokenizer that cannot
    be copied serves one call at a time.

    Args:
        tokenizer: a slow transformers tokenizer; owned from here on.
        vocab_size: number of ids that the model supports; larger ids are refused.
    """

    max_chars_per_token = LOOSE_MAX_CHARS_PER_TOKEN

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self._copies = _make_pool(tokenizer)
        self._template = ChatTemplate(tokenizer)
        self._vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """Return the ids of a raw prompt.

        Raises:
            InvalidRequest: the prompt has a token that the model does not support.
        """
        with self._copies.borrow() as hf:
            token_ids = hf.encode(text)
        return check_token_ids("prompt", token_ids, self._vocab_size)

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Return the ids of a conversation; see `prepare_chat`."""
        return self.prepare_chat(prompt).token_ids

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        """Return the ids of a conversation and the format of the answer to it.

        Raises:
            InvalidRequest: the conversation cannot be rendered or encoded.
        """
        text, output_format = self._template.render(prompt)
        with self._copies.borrow() as hf:
            token_ids = hf.encode(text, add_special_tokens=False)
        return EncodedPrompt(
            check_token_ids("messages", token_ids, self._vocab_size), output_format
        )

    def decode(self, token_ids: SequenceOf[int]) -> str:
        """Return the text without special tokens."""
        return self._decode(token_ids, skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, special ones included."""
        return self._decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the UTF-8 bytes of one token, or None if they are unknown."""
        with self._copies.borrow() as hf:
            name = hf.convert_ids_to_tokens(token_id)
        return to_bytes(self.token_text(token_id), name=name)

    def _decode(self, token_ids: SequenceOf[int], *, skip_special_tokens: bool) -> str:
        with self._copies.borrow() as hf:
            text: str = hf.decode(
                list(token_ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        return text


class _CopyPool:
    """Lends copies of an object, each to one caller at a time.

    A new copy takes time to make, so some are made in advance.
    """

    def __init__(self, original: Any, *, num_ready: int) -> None:
        self._original = original
        self._copying = threading.Lock()
        self._free = [self._copy() for _ in range(num_ready)]

    @contextmanager
    def borrow(self) -> Iterator[Any]:
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


class _LockedOriginal:
    """Lends one object that cannot be copied, to one caller at a time."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self) -> Iterator[Any]:
        with self._lock:
            yield self._original


def _make_pool(tokenizer: Any) -> _CopyPool | _LockedOriginal:
    try:
        return _CopyPool(tokenizer, num_ready=_NUM_READY_COPIES)
    except Exception as error:  # noqa: BLE001 - a tokenizer's own code may raise anything
        logger.warning(
            "the tokenizer cannot be copied (%s: %s) and serves one call at a time: "
            "streams wait while a long prompt is tokenized",
            type(error).__name__,
            error,
        )
        return _LockedOriginal(tokenizer)
