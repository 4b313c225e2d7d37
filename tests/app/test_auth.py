"""API keys: the caller that each names, and comparison in constant time."""

from __future__ import annotations

import hmac

import pytest

from app.auth import Authenticator
from streaming import ANYONE

KEYS = ("first", "second, which is longer", "third")


def test_without_keys_every_client_is_the_same_caller():
    authenticator = Authenticator(())
    assert [authenticator.identify(key) for key in (None, "", "first")] == [ANYONE] * 3


def test_each_key_names_a_caller_and_the_name_does_not_contain_it():
    authenticator = Authenticator(KEYS)
    names = [authenticator.identify(key) for key in KEYS]
    assert len(set(names)) == 3
    assert names == [Authenticator(reversed(KEYS)).identify(key) for key in KEYS]
    assert not any(key in str(name) for key in KEYS for name in names)


@pytest.mark.parametrize("key", [None, "", "firs", "first ", "First", "third\udcff"])
def test_an_invalid_key_names_no_caller(key: str | None):
    assert Authenticator(KEYS).identify(key) is None


@pytest.mark.pain(17)
@pytest.mark.parametrize("key", [*KEYS, "fourth", "firsx", "", "x" * 10_000])
def test_every_key_is_compared_in_constant_time(key: str, monkeypatch: pytest.MonkeyPatch):
    """By `hmac.compare_digest`, with every key, and over the same length."""
    compared: list[tuple[int, int]] = []
    compare_digest = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert (Authenticator(KEYS).identify(key) is not None) == (key in KEYS)
    assert compared == [(32, 32)] * len(KEYS)
