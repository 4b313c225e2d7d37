"""The rig's kernels are loaded once."""

from __future__ import annotations

import pytest

from tests.streaming.backends.attentions import once


def test_a_failure_is_repeated_without_another_attempt() -> None:
    attempts = []

    @once
    def load() -> None:
        attempts.append(1)
        raise ValueError("broken")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            load()
    assert len(attempts) == 1


def test_a_result_is_kept() -> None:
    load = once(object)
    assert load() is load()
