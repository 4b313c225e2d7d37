from __future__ import annotations

from dataclasses import dataclass

from app.responses.protocol.connection_cache import ConnectionCache
from app.websocket.socket_memory import SocketMemory


@dataclass(frozen=True)
class Known:
    response_id: str
    num_bytes: int


def test_the_latest_response_of_each_stream_is_cached():
    cache: ConnectionCache[Known] = ConnectionCache(SocketMemory())
    for response_id, stream_id in (("r1", None), ("r2", "a"), ("r3", None)):
        cache.put(Known(response_id, 1), stream_id)
    assert [cache.find(each) is not None for each in ("r1", "r2", "r3")] == [False, True, True]
    assert cache.find(None) is None
    assert cache.is_latest("r3", None)
    assert not cache.is_latest("r3", "a")
    assert not cache.is_latest("r3", "b")


def test_an_evicted_response_is_gone_from_every_stream():
    cache: ConnectionCache[Known] = ConnectionCache(SocketMemory())
    for stream_id in (None, "a"):
        cache.put(Known("r1", 1), stream_id)
    cache.put(Known("r2", 1), "b")
    cache.evict("r1")
    assert (cache.find("r1"), len(cache)) == (None, 1)


def test_the_oldest_response_is_evicted_first():
    cache: ConnectionCache[Known] = ConnectionCache(SocketMemory(), max_bytes=10)
    for response_id, stream_id in (("r1", "a"), ("r2", "b"), ("r3", "a"), ("r4", "c")):
        cache.put(Known(response_id, 4), stream_id)
    assert [cache.find(each) is not None for each in ("r2", "r3", "r4")] == [False, True, True]


def test_the_newest_response_stays_whatever_its_size():
    cache: ConnectionCache[Known] = ConnectionCache(SocketMemory(), max_bytes=10)
    cache.put(Known("r1", 4), "a")
    cache.put(Known("r2", 11), "b")
    assert (cache.find("r2"), len(cache)) == (Known("r2", 11), 1)


def test_the_oldest_response_of_all_sockets_is_evicted_first():
    memory = SocketMemory(max_bytes=10)
    one: ConnectionCache[Known] = ConnectionCache(memory)
    other: ConnectionCache[Known] = ConnectionCache(memory)
    one.put(Known("r1", 4), "a")
    other.put(Known("r2", 4), "a")
    one.put(Known("r3", 2), "b")
    assert memory.num_kept_bytes == 10
    other.put(Known("r4", 2), "b")
    assert [one.find(each) is not None for each in ("r1", "r3")] == [False, True]
    assert [other.find(each) is not None for each in ("r2", "r4")] == [True, True]
    assert memory.num_kept_bytes == 8


def test_removed_responses_release_their_memory():
    memory = SocketMemory(max_bytes=100)
    cache: ConnectionCache[Known] = ConnectionCache(memory, max_bytes=10)
    cache.put(Known("r1", 4), "a")
    cache.put(Known("r2", 5), "a")
    assert memory.num_kept_bytes == 5
    cache.put(Known("r3", 6), "b")
    assert (len(cache), memory.num_kept_bytes) == (1, 6)
    cache.evict("r3")
    assert memory.num_kept_bytes == 0
    cache.put(Known("r4", 7), None)
    cache.clear()
    assert (len(cache), memory.num_kept_bytes) == (0, 0)
