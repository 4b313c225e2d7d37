"""Find stop strings in text that arrives in pieces, without letting any part of one through."""

from __future__ import annotations

from collections.abc import Sequence


class StopChecker:
    """Passes text on up to the stop string that is complete first.

    What could be the beginning of a stop string is held until it is decided; the result does not
    depend on where the pieces are cut.

    Args:
        stop: the strings.
        keeps_stop: the stop string itself is passed on, too.
    """

    def __init__(self, stop: Sequence[str], *, keeps_stop: bool = False) -> None:
        self._stop = tuple(stop)
        self._keeps_stop = keeps_stop
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str, *, may_stop: bool = True) -> str:
        """Return the text that is safe to show; set `is_stopped` once a stop string is complete.

        Args:
            text: the next piece.
            may_stop: whether a stop string that this piece completes is one; else it is text.
        """
        assert not self.is_stopped, "nothing is read after the stop string"
        if not self._stop:
            return text
        num_held_before = len(self._held)
        text = self._held + text
        # A match within what was held was complete before it might stop.
        matches = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := text.find(stop, max(0, num_held_before + 1 - len(stop)))) >= 0
        ]
        if matches and may_stop:
            self.is_stopped = True
            self._held = ""
            end, start = min(matches)
            return text[: end if self._keeps_stop else start]
        num_held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """Return what is held: the text has ended, so it was no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
