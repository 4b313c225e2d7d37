from __future__ import annotations

from app.websocket.socket_memory import SMALL_REQUEST_CHARS, SocketMemory

LARGE = SMALL_REQUEST_CHARS + 1


def test_large_requests_take_half_of_it_at_most():
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


def test_one_large_request_has_room_whatever_its_size():
    assert SocketMemory(max_bytes=8).has_room_for_request(10**9)


def test_requests_displace_what_is_kept():
    memory = SocketMemory(max_bytes=8 * LARGE)
    forgotten: list[str] = []
    for key in "abc":
        memory.keep(key, 2 * LARGE, lambda key=key: forgotten.append(key))  # type: ignore[misc]
    memory.begin_request(LARGE)
    assert (forgotten, memory.num_kept_bytes) == (["a"], 4 * LARGE)
    memory.release("b")
    memory.release("b")
    assert (forgotten, memory.num_kept_bytes) == (["a"], 2 * LARGE)


def test_the_newest_is_kept_whatever_its_size():
    memory = SocketMemory(max_bytes=8)
    forgotten: list[str] = []
    memory.keep("a", 1, lambda: forgotten.append("a"))
    memory.keep("b", 100, lambda: forgotten.append("b"))
    assert (forgotten, memory.num_kept_bytes) == (["a"], 100)
