"""Log probabilities of an answer's tokens: which tokens wrote which text, and their wire form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from app.responses.schemas.objects import ChosenLogprobObject, TokenLogprobObject
from app.schemas.logprobs import clamp_logprob
from streaming import Generation

_MAX_CACHED_TOKENS = 4096
"""Token texts that a formatter caches: alternatives repeat, and decoding a token is slow."""


class PendingTokens:
    """Generated tokens whose text has not been sent in a delta yet, by their record numbers."""

    def __init__(self) -> None:
        self._tokens: list[tuple[int, str]] = []

    def add(self, number: int, text: str) -> None:
        """Append the next token.

        Args:
            number: its record in the log.
            text: the text that the detokenizer released with it; may be empty.
        """
        self._tokens.append((number, text))

    def take(self, text: str) -> list[int]:
        """Return the record numbers of the tokens that wrote `text`, and forget them.

        A token counts if it wrote a part of the text, or a part of one of its characters. Earlier
        tokens are forgotten: they wrote reasoning, calls or markers.
        """
        joined = "".join(token_text for _, token_text in self._tokens)
        start = max(joined.rfind(text), 0)
        end = start + len(text)
        taken: list[int] = []
        at = 0
        for index, (number, token_text) in enumerate(self._tokens):
            if at >= end:
                self._tokens = self._tokens[index:]
                return taken
            if at + len(token_text) > start or (not token_text and at >= start):
                taken.append(number)
            at += len(token_text)
        self._tokens = []
        return taken

    def clear(self) -> None:
        """Forget all tokens."""
        self._tokens.clear()


class LogprobFormatter:
    """Writes the log probabilities of a generation's tokens in their wire form.

    Args:
        generation: the log of the tokens.
        token_text: returns the text of a single token.
        token_bytes: returns its bytes, which may be part of a UTF-8 character; None if unknown.
    """

    def __init__(
        self,
        generation: Generation,
        *,
        token_text: Callable[[int], str],
        token_bytes: Callable[[int], bytes | None],
    ) -> None:
        self._generation = generation
        self._spell = lru_cache(_MAX_CACHED_TOKENS)(partial(_spell, token_text, token_bytes))

    def format(self, numbers: Sequence[int]) -> list[ChosenLogprobObject]:
        """Return the log probabilities of the tokens in the records with these numbers."""
        logprobs: list[ChosenLogprobObject] = []
        for scores in self._generation.tokens_at(numbers).scores():
            chosen, *top = [self._format_token(*score) for score in scores]
            logprobs.append({**chosen, "top_logprobs": top})
        return logprobs

    def _format_token(self, token_id: int, logprob: float) -> TokenLogprobObject:
        text, utf8 = self._spell(token_id)
        return {"token": text, "bytes": list(utf8), "logprob": clamp_logprob(logprob)}


def _spell(
    token_text: Callable[[int], str], token_bytes: Callable[[int], bytes | None], token_id: int
) -> tuple[str, bytes]:
    text, utf8 = token_text(token_id), token_bytes(token_id)
    return text, text.encode() if utf8 is None else utf8
