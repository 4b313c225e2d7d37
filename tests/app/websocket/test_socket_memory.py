from __future__ import annotations

from app.websocket.socket_memory import SMALL_REQUEST_CHARS, SocketMemory

LARGE = SMALL_REQUEST_CHARS + 1


def test_large_requests_may_use_half_of_the_budget():
    memory = SocketMemory(max_bytes=2 * 4 * 2 * LARGE)
    for _ in range(2):
        assert memory.has_room_for_request(LARGE)
        memory.begin_request(LARGE)
    assert not memory.has_room_for_request(LARGE)
    memory.end_request(LARGE)
    assert memory.has_room_for_request(LARGE)
    memory.end_request(LARGE)
    assert memory.num_request_bytes == 0


def test_small_requests_are_not_counted():
    memory = SocketMemory(max_bytes=8)
    memory.begin_request(LARGE)
    assert memory.has_room_for_request(SMALL_REQUEST_CHARS)
    memory.begin_request(SMALL_REQUEST_CHARS)
    memory.end_request(SMALL_REQUEST_CHARS)
    assert memory.num_request_bytes == 4 * LARGE


def test_a_single_large_request_always_has_room():
    assert SocketMemory(max_bytes=8).has_room_for_request(10**9)


def test_requests_evict_the_oldest_responses():
    memory = SocketMemory(max_bytes=8 * LARGE)
    evicted: list[str] = []
    for key in "abc":
        memory.keep(key, 2 * LARGE, lambda key=key: evicted.append(key))  # type: ignore[misc]
    memory.begin_request(LARGE)
    assert (evicted, memory.num_kept_bytes) == (["a"], 4 * LARGE)
    memory.release("b")
    memory.release("b")
    assert (evicted, memory.num_kept_bytes) == (["a"], 2 * LARGE)


def test_the_newest_response_is_always_kept():
    memory = SocketMemory(max_bytes=8)
    evicted: list[str] = []
    memory.keep("a", 1, lambda: evicted.append("a"))
    memory.keep("b", 100, lambda: evicted.append("b"))
    assert (evicted, memory.num_kept_bytes) == (["a"], 100)
