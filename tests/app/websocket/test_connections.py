"""The places of sockets, shared among callers."""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from app.websocket.connections import ConnectionRegistry
from tests.support import property_test


class Socket:
    """Remembers what it was told."""

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.told: list[str] = []

    def drain(self) -> None:
        self.told.append("drain")

    def give_way(self) -> None:
        self.told.append("give way")


def open_socket(stack: ExitStack, registry: ConnectionRegistry, caller: str) -> Socket:
    socket = Socket(caller)
    stack.enter_context(registry.register(caller, socket))
    return socket


def test_a_caller_has_a_limit_of_its_own():
    registry = ConnectionRegistry(max_connections=5, max_connections_per_caller=2)
    with ExitStack() as stack:
        for _ in range(2):
            assert not registry.has_all_of_its_own("a")
            open_socket(stack, registry, "a")
        assert registry.has_all_of_its_own("a")
        assert not registry.has_all_of_its_own("b")
        assert not registry.is_full_for("b")
    assert not registry.has_all_of_its_own("a")


def test_a_newcomer_takes_the_newest_place_of_the_caller_that_has_most():
    registry = ConnectionRegistry(max_connections=4)
    with ExitStack() as stack:
        sockets = [open_socket(stack, registry, caller) for caller in "aaab"]
        assert not registry.is_full_for("c")
        new = open_socket(stack, registry, "c")
        assert [socket.told for socket in (*sockets, new)] == [[], [], ["give way"], [], []]
        assert len(registry) == 5, "it is closing"
        assert not registry.is_full_for("d")
        open_socket(stack, registry, "d")
        for caller in "abcde":
            assert registry.is_full_for(caller), "nobody has two"
        registry.drain()
        assert [socket.told for socket in sockets[:2]] == [["drain"], ["give way"]]
    assert len(registry) == 0


async def test_what_gave_way_is_waited_for_until_it_is_closed():
    registry = ConnectionRegistry(max_connections=2)
    with ExitStack() as closing:
        with ExitStack() as stack:
            open_socket(stack, registry, "a")
            last = open_socket(closing, registry, "a")
            open_socket(stack, registry, "b")
        assert last.told == ["give way"]
        assert len(registry) == 1
    await registry.wait_empty()


@property_test
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=40), st.integers(1, 5))
def test_a_caller_without_a_socket_is_refused_only_where_nobody_has_two(
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
            for entry in [entry for entry in live if "give way" in entry[0].told]:
                live.remove(entry)
                entry[1].close()
        assert len(registry) == len(live) <= max_connections
    for _, stack in live:
        stack.close()
