"""Which tokens wrote which text of an answer."""

from __future__ import annotations


class UnshownTokens:
    """Tokens that no text of the answer has been shown for yet, by their record numbers."""

    def __init__(self) -> None:
        self._tokens: list[tuple[int, str]] = []

    def add(self, number: int, text: str) -> None:
        """Take the next token, and the text that it set free."""
        self._tokens.append((number, text))

    def take(self, text: str) -> list[int]:
        """Return the tokens that wrote `text`; those before it wrote none of the answer.

        A token with a part of the text counts, and so does one with a part of a character.
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
        self._tokens.clear()
