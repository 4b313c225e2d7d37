"""The check passes the kernels and fails others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streaming.backends.native.check import check
from tests.streaming.backends.attentions import kernels


def test_the_kernels_pass() -> None:
    check(kernels())


def test_kernels_that_do_nothing_fail() -> None:
    idle: Any = SimpleNamespace(
        tokenwire_update=kernels().tokenwire_update, tokenwire_attend=lambda _: None
    )
    with pytest.raises(
        ValueError, match=r"the kernel is off by .* in torch.float32 at \(8, 2, 16\)"
    ):
        check(idle)
