"""Finds stop strings in text that arrives in chunks, without returning a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopChecker:
    """Returns text up to the first complete stop string.

    A possible start of a stop string is held back until it is decided. The result does not depend
    on how the text is split into chunks.

    Args:
        stop: the stop strings.
        keeps_stop: return the stop string as well.

    Attributes:
        is_stopped: whether a stop string was found.
    """

    def __init__(self, stop: Sequence[str], *, keeps_stop: bool = False) -> None:
        self._stop = tuple(stop)
        self._keeps_stop = keeps_stop
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str, *, may_stop: bool = True) -> str:
        """Add a chunk and return the text that is safe to show; set `is_stopped` at a stop string.

        Args:
            text: the next chunk.
            may_stop: whether a stop string that this chunk completes counts; if not, it is text.
        """
        assert not self.is_stopped, "text was fed after the stop string"
        if not self._stop:
            return text
        num_held_before = len(self._held)
        text = self._held + text
        # Find matches that end in the new text. One that ends within the held text was complete
        # when `may_stop` was False.
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
        """Return the held text at the end of the text: it is not a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
