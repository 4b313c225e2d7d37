from __future__ import annotations

import pytest

from app.schemas.summary import seal, unseal


@pytest.mark.parametrize("summary", ["", "hello", "h€llo 👋\n" * 100])
def test_a_summary_comes_back_as_it_was(summary: str):
    assert unseal(seal(summary)) == summary


@pytest.mark.parametrize(
    "content", ["", "gAAAAA", seal("a")[:-1], seal("a") + "é", seal("") + "_w=="]
)
def test_other_content_is_refused(content: str):
    with pytest.raises(ValueError, match="no content of this server's"):
        unseal(content)
