from __future__ import annotations

import random

import pytest

from app.transport.connection_limiter import ConnectionLimiter, ConnectionSlot


class Connection:
    """Asks for a slot, and records whether it was evicted."""

    def __init__(self, limiter: ConnectionLimiter, host: str | None = "10.0.0.1") -> None:
        self.is_evicted = False
        self.admitted = limiter.admit(self, host)

    def evict(self) -> None:
        self.is_evicted = True

    @property
    def slot(self) -> ConnectionSlot:
        assert self.admitted is not None
        return self.admitted


def make_limiter(
    max_connections: int = 3, *, per_address: int = 0, reserved: int = 1
) -> ConnectionLimiter:
    return ConnectionLimiter(
        max_connections=max_connections, max_per_address=per_address, num_reserved=reserved
    )


def test_the_longest_waiting_connection_is_evicted():
    limiter = make_limiter()
    first, second, third = (Connection(limiter) for _ in range(3))
    first.slot.mark_serving()
    first.slot.mark_waiting()  # again, so it has waited for less than the others
    fourth = Connection(limiter)
    assert [each.is_evicted for each in (first, second, third)] == [False, True, False]
    assert not fourth.slot.is_reserved
    assert len(limiter) == 3


def test_serving_connections_keep_their_slots_and_others_get_a_reserved_one():
    limiter = make_limiter()
    serving = [Connection(limiter) for _ in range(3)]
    for each in serving:
        each.slot.mark_serving()
    extra = Connection(limiter)
    assert extra.slot.is_reserved
    assert not any(each.is_evicted for each in serving)


def test_reserved_slots_are_few_and_the_longest_waiting_one_is_evicted():
    limiter = make_limiter(1, reserved=2)
    Connection(limiter).slot.mark_serving()
    first, second = Connection(limiter), Connection(limiter)
    third = Connection(limiter)
    assert [first.is_evicted, second.is_evicted] == [True, False]
    second.slot.mark_serving()
    third.slot.mark_serving()
    assert Connection(limiter).admitted is None
    third.slot.release()
    assert Connection(limiter).slot.is_reserved


def test_an_address_at_its_limit_evicts_its_own_connections():
    limiter = make_limiter(10, per_address=2)
    other = Connection(limiter, "10.0.0.2")
    first, second = Connection(limiter), Connection(limiter)
    third = Connection(limiter)
    assert [each.is_evicted for each in (other, first, second)] == [False, True, False]
    second.slot.mark_serving()
    third.slot.mark_serving()
    assert Connection(limiter).slot.is_reserved
    assert not Connection(limiter, "10.0.0.3").slot.is_reserved


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:1:2:3::4", "2001:db8:1:2:ffff::1", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        (None, None, True),
    ],
)
def test_ipv6_networks_and_mapped_addresses_count_as_one(
    one: str | None, other: str | None, is_same: bool
):
    limiter = make_limiter(10, per_address=1)
    Connection(limiter, one).slot.mark_serving()
    assert Connection(limiter, other).slot.is_reserved == is_same


def test_a_second_release_does_nothing():
    limiter = make_limiter(10, per_address=2)
    first, second = Connection(limiter), Connection(limiter)
    first.slot.release()
    first.slot.release()
    assert len(limiter) == 1
    third = Connection(limiter)
    assert (second.is_evicted, third.slot.is_reserved) == (False, False)


def test_the_limits_hold_in_any_order_and_nothing_is_left():
    chance = random.Random(7)
    limiter = make_limiter(8, per_address=4, reserved=2)
    admitted: list[Connection] = []
    for _ in range(5000):
        connection = Connection(limiter, f"10.0.0.{chance.randrange(4)}")
        if connection.admitted is not None:
            admitted.append(connection)
        admitted = [each for each in admitted if not each.is_evicted]
        for each in chance.sample(admitted, k=min(3, len(admitted))):
            slot = each.slot
            chance.choice([slot.mark_waiting, slot.mark_serving, slot.mark_serving, slot.release])()
            if slot not in limiter._slots | limiter._reserved:
                admitted.remove(each)
        assert len(limiter) == len(admitted) <= 8 + 2
        assert all(count <= 4 for count in limiter._num_at.values())
    for each in admitted:
        each.slot.release()
    assert len(limiter) == 0
    left = (limiter._waiting, limiter._waiting_at, limiter._waiting_reserved, limiter._num_at)
    assert left == ({}, {}, {}, {})
