"""Ids that were in use, up to a count; the one used longest ago is forgotten first."""

from __future__ import annotations

from collections import OrderedDict


class RecentIds:
    """Remembers ids.

    Args:
        max_ids: kept at once.
    """

    def __init__(self, *, max_ids: int) -> None:
        self._max_ids = max_ids
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, recent_id: str) -> bool:
        return recent_id in self._ids

    def remember(self, recent_id: str) -> None:
        self._ids[recent_id] = None
        self._ids.move_to_end(recent_id)
        if len(self._ids) > self._max_ids:
            self._ids.popitem(last=False)
