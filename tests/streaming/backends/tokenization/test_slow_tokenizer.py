"""Tokenizers in Python: their copies, and threads that use them at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from streaming.backend import Tokenizer
from streaming.backends.tokenization.slow_tokenizer import SlowTokenizer
from streaming.backends.tokenization.tokenizer import wrap_tokenizer
from streaming.chat.messages import ChatMessage
from streaming.errors import InvalidRequest
from streaming.request import ChatPrompt
from tests.support import TIMEOUT_S

VOCAB_SIZE = 1000
USER = ChatMessage("user", "hello")


class PythonTokenizer:
    """A tokenizer without a Rust core: one token per character, and an end token."""

    chat_template = "x"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) for char in text] + [3] * add_special_tokens

    def decode(
        self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        assert not clean_up_tokenization_spaces
        return "".join(
            chr(token_id) if token_id != 3 else "<end>" * (not skip_special_tokens)
            for token_id in ids
        )

    def apply_chat_template(
        self,
        turns: list[dict[str, Any]],
        tools: None,
        chat_template: None,
        tokenize: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        assert not continue_final_message
        return "".join(f"{turn['role']}:{turn['content']}\n" for turn in turns)


def test_tokenizer_without_rust_core() -> None:
    tokenizer = wrap_tokenizer(PythonTokenizer(), vocab_size=VOCAB_SIZE)
    assert isinstance(tokenizer, SlowTokenizer)
    assert tokenizer.encode("hi") == [104, 105, 3]
    assert tokenizer.decode([104, 105, 3]) == "hi"
    assert tokenizer.token_text(3) == "<end>"
    assert tokenizer.decode(tokenizer.encode_chat(ChatPrompt((USER,)))) == "user:hello\n"
    with pytest.raises(InvalidRequest, match="does not support token 128578"):
        tokenizer.encode("🙂")


class BlockedTokenizer(PythonTokenizer):
    """Blocks each `encode` until the gate opens, and lists its copies."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.copies: list[BlockedTokenizer] = []

    def __deepcopy__(self, memo: object) -> BlockedTokenizer:
        made = copy(self)  # shares the gate
        self.copies.append(made)
        return made

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.entered.release()
        assert self.gate.wait(TIMEOUT_S)
        return super().encode(text, add_special_tokens)

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return chr(token_id)


@contextmanager
def encoding(
    blocked: BlockedTokenizer, tokenizer: Tokenizer, num_threads: int
) -> Iterator[Executor]:
    """Keep `num_threads` threads inside `encode`; the yielded pool has one more for the test."""
    with ThreadPoolExecutor(num_threads + 1) as pool:
        try:
            jobs = [pool.submit(tokenizer.encode, "a long prompt") for _ in range(num_threads)]
            for _ in jobs:
                assert blocked.entered.acquire(timeout=TIMEOUT_S)
            yield pool
        finally:
            blocked.gate.set()
        assert {tuple(job.result()) for job in jobs} == {(*b"a long prompt", 3)}


def test_encoding_does_not_block_other_threads() -> None:
    """The engine decodes and the event loop lists single tokens while a prompt is encoded."""
    blocked = BlockedTokenizer()
    tokenizer = wrap_tokenizer(blocked, vocab_size=VOCAB_SIZE)
    with encoding(blocked, tokenizer, 2) as pool:
        calls: list[Future[Any]] = [
            pool.submit(tokenizer.decode, [104, 105, 3]),
            pool.submit(tokenizer.token_text, 3),
            pool.submit(tokenizer.token_bytes, 104),
        ]
        assert [call.result(TIMEOUT_S) for call in calls] == ["hi", "<end>", b"h"]


@pytest.mark.parametrize(("num_threads", "num_copies"), [(1, 3), (3, 3), (5, 5)])
def test_there_is_a_copy_for_each_simultaneous_call(num_threads: int, num_copies: int) -> None:
    blocked = BlockedTokenizer()
    tokenizer = wrap_tokenizer(blocked, vocab_size=VOCAB_SIZE)
    with encoding(blocked, tokenizer, num_threads):
        pass
    for number in range(100):
        assert tokenizer.decode([number + 100]) == chr(number + 100)
    assert len(blocked.copies) == num_copies


def test_a_call_that_raises_returns_its_copy() -> None:
    blocked = BlockedTokenizer()
    tokenizer = wrap_tokenizer(blocked, vocab_size=VOCAB_SIZE)
    for _ in range(9):
        with pytest.raises(ValueError, match="chr"):
            tokenizer.decode([-1])
    assert tokenizer.decode([104]) == "h"
    assert len(blocked.copies) == 3


class UncopyableTokenizer(PythonTokenizer):
    """Cannot be copied, and fails if two threads use it at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def decode(
        self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        assert self.lock.acquire(blocking=False), "two threads at once"
        try:
            return super().decode(ids, skip_special_tokens, clean_up_tokenization_spaces)
        finally:
            self.lock.release()


def test_a_tokenizer_that_cannot_be_copied_serves_one_call_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = wrap_tokenizer(UncopyableTokenizer(), vocab_size=VOCAB_SIZE)
    assert "the tokenizer cannot be copied (TypeError: cannot pickle" in caplog.text
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(tokenizer.decode, [[104, 105, 3]] * 200))
    assert set(texts) == {"hi"}
    assert tokenizer.encode("hi") == [104, 105, 3]


def test_a_slow_tokenizer_of_transformers() -> None:
    tokenizer = wrap_tokenizer(ByT5Tokenizer(), vocab_size=384)
    assert isinstance(tokenizer, SlowTokenizer)
    expected = ByT5Tokenizer().encode("naïve 🙂")
    assert tokenizer.encode("naïve 🙂") == expected
    assert tokenizer.decode(expected) == "naïve 🙂"
