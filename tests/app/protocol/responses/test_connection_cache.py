from __future__ import annotations

from dataclasses import dataclass

from app.protocol.responses.connection_cache import ConnectionCache


@dataclass(frozen=True)
class Known:
    response_id: str
    num_bytes: int


def test_it_keeps_the_latest_response_of_each_lane():
    cache: ConnectionCache[Known] = ConnectionCache()
    for response_id, lane in (("r1", None), ("r2", "a"), ("r3", None)):
        cache.keep(Known(response_id, 1), lane)
    assert [cache.find(each) is not None for each in ("r1", "r2", "r3")] == [False, True, True]
    assert cache.find(None) is None
    assert cache.is_latest("r3", None)
    assert not cache.is_latest("r3", "a")
    assert not cache.is_latest("r3", "b")


def test_what_is_evicted_is_gone_from_every_lane():
    cache: ConnectionCache[Known] = ConnectionCache()
    for lane in (None, "a"):
        cache.keep(Known("r1", 1), lane)
    cache.keep(Known("r2", 1), "b")
    cache.evict("r1")
    assert (cache.find("r1"), len(cache)) == (None, 1)


def test_over_its_size_it_drops_what_was_kept_longest_ago():
    cache: ConnectionCache[Known] = ConnectionCache(max_bytes=10)
    for response_id, lane in (("r1", "a"), ("r2", "b"), ("r3", "a"), ("r4", "c")):
        cache.keep(Known(response_id, 4), lane)
    assert [cache.find(each) is not None for each in ("r2", "r3", "r4")] == [False, True, True]


def test_the_newest_stays_whatever_its_size():
    cache: ConnectionCache[Known] = ConnectionCache(max_bytes=10)
    cache.keep(Known("r1", 4), "a")
    cache.keep(Known("r2", 11), "b")
    assert (cache.find("r2"), len(cache)) == (Known("r2", 11), 1)
