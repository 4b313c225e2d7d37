from __future__ import annotations

from app.websocket.protocol.recent_ids import RecentIds


def test_the_one_used_longest_ago_is_forgotten_first():
    ids = RecentIds(max_ids=2)
    for each in ("a", "b", "a", "c"):
        ids.remember(each)
    assert [each for each in "abc" if each in ids] == ["a", "c"]
