"""Complete characters only, the same text as a single decode, in linear time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.backends.scripted import EOS, ByteTokenizer
from streaming.detokenizer import REPLACEMENT, Detokenizer, texts_of
from tests.support import property_test

TEXTS = [
    "plain ASCII, with  spaces\n\nand\ttabs ",
    "Grüße, señor, naïveté",
    "日本語と中文と한국어",
    "🙂😀🎉",
    "👩‍👩‍👧‍👦 and 👍🏽 and 🏳️‍🌈 and 🇩🇪",
    "e\u0301 n\u0303 \u0915\u094d\u0937",  # combining marks, a Devanagari conjunct
    "a\U0001f600b日c\u0301d",
    "\u0000\u007f\u0080\u07ff\u0800\uffff\U00010000\U0010ffff",  # bounds of UTF-8 lengths
]
SPECIAL = 300


class PieceTokenizer:
    """Tokens that are byte strings, as in byte-level BPE; special tokens have no text."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = dict(enumerate(pieces))
        self.token_ids = list(self._pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(self._pieces.get(token_id, b"") for token_id in token_ids).decode(
            errors="replace"
        )


class SentencePieceTokenizer:
    """Decodes as Llama 2 and Mistral do: `▁` is a space, unknown characters fall back to bytes.

    A run of byte tokens is decoded as one; where it is no whole UTF-8, each of its bytes becomes
    U+FFFD, those of whole characters too. One leading space of the whole text is dropped.
    """

    def __init__(self, known: str = "▁ abcdefghijklmnopqrstuvwxyz") -> None:
        self._known = known

    def encode(self, text: str) -> list[int]:
        token_ids: list[int] = []
        for char in "▁" + text.replace(" ", "▁"):
            if char in self._known:
                token_ids.append(1000 + self._known.index(char))
            else:
                token_ids += char.encode()
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text = ""
        visible = [token_id for token_id in token_ids if token_id not in (EOS, SPECIAL)]
        for is_byte, run in itertools.groupby(visible, key=lambda token_id: token_id < 256):
            ids = list(run)
            if not is_byte:
                text += "".join(self._known[token_id - 1000] for token_id in ids)
                continue
            try:
                text += bytes(ids).decode()
            except UnicodeDecodeError:
                text += REPLACEMENT * len(ids)
        return text.replace("▁", " ").removeprefix(" ")


def stream(
    decode: Callable[[Sequence[int]], str],
    token_ids: Iterable[int],
    prompt_ids: Sequence[int] = (),
) -> str:
    """Return the joined pieces, after checking that each has complete characters only."""
    detokenizer = Detokenizer(decode, prompt_ids)
    pieces = [detokenizer.feed(token_id) for token_id in token_ids]
    pieces.append(detokenizer.flush())
    assert detokenizer.flush() == ""
    assert not any(REPLACEMENT in piece for piece in pieces), pieces
    return "".join(pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_a_token_for_each_byte(text: str):
    tokenizer = ByteTokenizer()
    for size in range(len(text) + 1):
        prompt, answer = text[:size], text[size:]
        assert (
            stream(tokenizer.decode, tokenizer.encode(answer), tokenizer.encode(prompt)) == answer
        )


@pytest.mark.pain(4)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_cut_at_every_byte(text: str):
    data = text.encode()
    for cut in range(len(data) + 1):
        for second in range(cut, min(cut + 5, len(data)) + 1):
            tokenizer = PieceTokenizer([data[:cut], data[cut:second], data[second:]])
            assert stream(tokenizer.decode, tokenizer.token_ids) == text


@pytest.mark.pain(4)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["", "ask ", "日本", "🙂😀", "ab🙂"])
def test_byte_fallback_decodes_a_run_of_bytes_together(text: str, prompt: str):
    """With two emoji in a row, the first byte of the second makes the first invalid again."""
    tokenizer = SentencePieceTokenizer()
    prompt_ids = tokenizer.encode(prompt)
    token_ids = tokenizer.encode(text)[1:]
    assert stream(tokenizer.decode, token_ids, prompt_ids) == text


def test_a_leading_space_depends_on_what_is_before():
    tokenizer = SentencePieceTokenizer()
    prompt_ids = tokenizer.encode("ask")
    assert stream(tokenizer.decode, tokenizer.encode(" a b"), prompt_ids) == "  a b"
    assert stream(tokenizer.decode, tokenizer.encode(" a b")) == " a b"


def test_characters_are_returned_as_soon_as_they_are_complete():
    detokenizer = Detokenizer(ByteTokenizer().decode)
    pieces = [detokenizer.feed(byte) for byte in "aé😀b".encode()]
    assert pieces == ["a", "", "é", "", "", "", "😀", "b"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), SentencePieceTokenizer()])
def test_special_tokens_have_no_text_at_any_position(
    text: str, tokenizer: ByteTokenizer | SentencePieceTokenizer
):
    token_ids = tokenizer.encode(text)
    expected = tokenizer.decode(token_ids)
    for at in range(len(token_ids) + 1):
        with_special = [*token_ids[:at], EOS, EOS, *token_ids[at:]]
        assert stream(tokenizer.decode, with_special) == expected


@pytest.mark.pain(4)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), SentencePieceTokenizer()])
def test_an_end_inside_a_character_drops_that_character_only(
    text: str, tokenizer: ByteTokenizer | SentencePieceTokenizer
):
    """`max_tokens` may end a text inside a character."""
    token_ids = tokenizer.encode(text)
    for end in range(len(token_ids) + 1):
        shown = stream(tokenizer.decode, token_ids[:end])
        assert tokenizer.decode(token_ids).startswith(shown)
        whole = tokenizer.decode(token_ids[:end])
        assert whole == shown or whole.endswith(REPLACEMENT)


def test_an_end_inside_a_character_keeps_what_came_with_it():
    tokenizer = PieceTokenizer([b"ask", b"END\xf0\x9f"])
    assert stream(tokenizer.decode, tokenizer.token_ids) == "askEND"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), SentencePieceTokenizer()])
def test_invalid_bytes_become_replacement_characters(
    tokenizer: ByteTokenizer | SentencePieceTokenizer,
):
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [detokenizer.feed(byte) for byte in [0xFF, *tokenizer.encode("b")]]
    assert "".join(pieces).replace(" ", "") == "\ufffdb"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), SentencePieceTokenizer()])
def test_invalid_bytes_are_not_held_forever_and_do_not_affect_later_text(
    tokenizer: ByteTokenizer | SentencePieceTokenizer,
):
    detokenizer = Detokenizer(tokenizer.decode, tokenizer.encode("ask"))
    pieces = [detokenizer.feed(0xFF) for _ in range(100)]
    longest = max(
        len(list(run)) for has_text, run in itertools.groupby(pieces, bool) if not has_text
    )
    assert longest <= 8
    pieces += [detokenizer.feed(token_id) for token_id in tokenizer.encode("a日😀")]
    pieces.append(detokenizer.flush())
    assert "".join(pieces).replace(" ", "") == REPLACEMENT * 100 + "a日😀"


def test_an_invalid_byte_after_a_character_does_not_retract_it():
    tokenizer = SentencePieceTokenizer()
    detokenizer = Detokenizer(tokenizer.decode, tokenizer.encode("ask"))
    token_ids = [*"😀".encode(), 0xF0, *tokenizer.encode("a")[1:], *"é".encode()]
    pieces = [detokenizer.feed(token_id) for token_id in token_ids]
    assert "".join(pieces) == "😀\ufffdaé"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), SentencePieceTokenizer()])
def test_an_incomplete_character_at_the_end_of_the_prompt_is_ignored(
    tokenizer: ByteTokenizer | SentencePieceTokenizer,
):
    """A client may send the token ids of an answer that `max_tokens` ended in a character."""
    emoji = list("😀".encode())
    for cut in range(1, 4):
        detokenizer = Detokenizer(tokenizer.decode, [*tokenizer.encode("ask"), *emoji[:cut]])
        pieces = [detokenizer.feed(token_id) for token_id in (*emoji[cut:], *tokenizer.encode("b"))]
        assert "".join(pieces).strip() == "b"


class CountingDecode:
    """Counts calls and decoded tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self.num_calls = 0
        self.num_tokens = 0

    def __call__(self, token_ids: Sequence[int]) -> str:
        self.num_calls += 1
        self.num_tokens += len(token_ids)
        return self._decode(token_ids)


@pytest.mark.parametrize(
    "token_ids",
    [
        [EOS] * 5000,  # generated under ignore_eos
        [*"é".encode()[:1], *[EOS] * 5000],  # while an incomplete character is held
        [0xFF] * 5000,
        list("日本語".encode() * 500),
        list(b"plain " * 800),
    ],
)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), SentencePieceTokenizer()])
def test_the_work_is_linear(
    token_ids: list[int], tokenizer: ByteTokenizer | SentencePieceTokenizer
):
    decode = CountingDecode(tokenizer.decode)
    detokenizer = Detokenizer(decode, [65] * 10_000)
    for token_id in token_ids:
        detokenizer.feed(token_id)
    assert decode.num_calls <= 3 * len(token_ids) + 10
    assert decode.num_tokens <= 30 * len(token_ids) + 100


@property_test
@given(st.text(max_size=30), st.text(max_size=5), st.data())
def test_random_text_in_random_pieces(text: str, prompt: str, data: st.DataObject):
    text = text.replace(REPLACEMENT, "")
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=20)))
    tokenizer = PieceTokenizer(
        [prompt.encode(), *(raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)]))]
    )
    assert stream(tokenizer.decode, tokenizer.token_ids[1:], tokenizer.token_ids[:1]) == text


@property_test
@given(st.text(max_size=30), st.text("a 日😀é", max_size=5))
def test_random_text_with_byte_fallback(text: str, prompt: str):
    text = text.replace(REPLACEMENT, "").replace("▁", "")
    tokenizer = SentencePieceTokenizer()
    token_ids = tokenizer.encode(text)[1:]
    assert stream(tokenizer.decode, token_ids, tokenizer.encode("ask" + prompt)) == text


@property_test
@given(st.lists(st.integers(0, 256), max_size=60))
def test_random_bytes_with_a_letter_after_them(token_ids: list[int]):
    tokenizer = ByteTokenizer()
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [detokenizer.feed(token_id) for token_id in [*token_ids, *b"the end"]]
    text = "".join(pieces) + detokenizer.flush()
    assert text.endswith("the end")
    ascii_only = [chr(token_id) for token_id in token_ids if token_id < 128]
    assert [char for char in text.removesuffix("the end") if char.isascii()] == ascii_only


# Texts of a whole prompt.


@property_test
@given(st.text(max_size=30), st.integers(0, 3))
def test_texts_of_tokens_are_those_that_a_detokenizer_returns(text: str, num_cut: int):
    """One text per token; the last character may be incomplete."""
    token_ids = [*text.encode(), ord("!"), *"😀".encode()[:num_cut]]
    pieces = texts_of(token_ids, decode=ByteTokenizer().decode)
    assert len(pieces) == len(token_ids)
    assert "".join(pieces) == text + "!"
    detokenizer = Detokenizer(ByteTokenizer().decode)
    fed = [detokenizer.feed(token_id) for token_id in token_ids]
    assert (list(pieces[:-1]), pieces[-1]) == (fed[:-1], fed[-1] + detokenizer.flush())
