"""Connection limits, eviction and drain."""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from app.websocket.connections import ConnectionRegistry
from tests.support import property_test


class Socket:
    """Records the calls of the registry."""

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.calls: list[str] = []

    def drain(self) -> None:
        self.calls.append("drain")

    def evict(self) -> None:
        self.calls.append("evict")


def open_socket(stack: ExitStack, registry: ConnectionRegistry, caller: str) -> Socket:
    socket = Socket(caller)
    stack.enter_context(registry.register(caller, socket))
    return socket


def test_one_caller_may_not_exceed_its_limit():
    registry = ConnectionRegistry(max_connections=5, max_connections_per_caller=2)
    with ExitStack() as stack:
        for _ in range(2):
            assert not registry.is_at_caller_limit("a")
            open_socket(stack, registry, "a")
        assert registry.is_at_caller_limit("a")
        assert not registry.is_at_caller_limit("b")
        assert not registry.is_full_for("b")
    assert not registry.is_at_caller_limit("a")


def test_a_new_caller_evicts_the_newest_socket_of_the_caller_that_has_most():
    registry = ConnectionRegistry(max_connections=4)
    with ExitStack() as stack:
        sockets = [open_socket(stack, registry, caller) for caller in "aaab"]
        assert not registry.is_full_for("c")
        new = open_socket(stack, registry, "c")
        assert [socket.calls for socket in (*sockets, new)] == [[], [], ["evict"], [], []]
        assert len(registry) == 5, "the evicted one is still open"
        assert not registry.is_full_for("d")
        open_socket(stack, registry, "d")
        for caller in "abcde":
            assert registry.is_full_for(caller), "no caller has two"
        registry.drain()
        assert [socket.calls for socket in sockets[:2]] == [["drain"], ["evict"]]
    assert len(registry) == 0


async def test_wait_empty_includes_evicted_connections():
    registry = ConnectionRegistry(max_connections=2)
    with ExitStack() as closing:
        with ExitStack() as stack:
            open_socket(stack, registry, "a")
            last = open_socket(closing, registry, "a")
            open_socket(stack, registry, "b")
        assert last.calls == ["evict"]
        assert len(registry) == 1
    await registry.wait_empty()


@property_test
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=40), st.integers(1, 5))
def test_a_caller_is_refused_only_if_no_other_has_two_more(
    script: list[tuple[bool, str]], max_connections: int
):
    registry = ConnectionRegistry(max_connections=max_connections)
    live: list[tuple[Socket, ExitStack]] = []
    for opens, caller in script:
        callers = [socket.caller for socket, _ in live]
        if not opens:
            for entry in [entry for entry in live if entry[0].caller == caller][:1]:
                live.remove(entry)
                entry[1].close()
        elif registry.is_full_for(caller):
            assert len(live) == max_connections
            num_most = max(callers.count(each) for each in callers)
            assert num_most <= callers.count(caller) + 1
        else:
            stack = ExitStack()
            live.append((open_socket(stack, registry, caller), stack))
            for entry in [entry for entry in live if "evict" in entry[0].calls]:
                live.remove(entry)
                entry[1].close()
        assert len(registry) == len(live) <= max_connections
    for _, stack in live:
        stack.close()
