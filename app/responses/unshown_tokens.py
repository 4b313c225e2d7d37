"""Which tokens wrote which text of an answer."""

from __future__ import annotations

from streaming import Token


class UnshownTokens:
    """Tokens that no text of the answer has been shown for yet."""

    def __init__(self) -> None:
        self._tokens: list[Token] = []

    def add(self, token: Token) -> None:
        self._tokens.append(token)

    def take(self, text: str) -> list[Token]:
        """Return the tokens that wrote `text`; those before it wrote none of the answer.

        A token with a part of the text counts, and so does one with a part of a character.
        """
        joined = "".join(token.text for token in self._tokens)
        start = max(joined.rfind(text), 0)
        end = start + len(text)
        taken: list[Token] = []
        at = 0
        for index, token in enumerate(self._tokens):
            if at >= end:
                self._tokens = self._tokens[index:]
                return taken
            if at + len(token.text) > start or (not token.text and at >= start):
                taken.append(token)
            at += len(token.text)
        self._tokens = []
        return taken

    def clear(self) -> None:
        self._tokens.clear()
